"""What residual nets do inside, and where classifiers err: the paper's Figs. 1, 6 and 7, and Veit et al. 2016."""

"""ImageNet localization (appendix C of the paper): a box for a class that is given, not for whatever is there."""

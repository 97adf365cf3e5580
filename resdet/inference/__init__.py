"""What a trained detector gains at test time (appendix B, and what users of other frameworks expect beside it)."""

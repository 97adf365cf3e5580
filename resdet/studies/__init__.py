"""The paper's tables and figures, for any nets and data, and the demos."""

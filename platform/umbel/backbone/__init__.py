"""The backbone: one frozen Llama-family decoder with named sites where adapters act."""

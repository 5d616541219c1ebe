"""The network: backbone, encoder, decoder, heads, masks."""

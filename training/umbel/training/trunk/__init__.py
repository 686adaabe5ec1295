"""The frozen trunk: what the layers below an adapter's lowest one compute, kept once per row and read ever after."""

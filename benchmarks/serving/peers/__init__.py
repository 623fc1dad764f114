"""Peers that serve errorbar's model file, each in its own environment: nothing here imports errorbar."""

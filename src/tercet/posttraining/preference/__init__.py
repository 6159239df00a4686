"""Preference learning without RL: DPO, IPO, KTO, SimPO, ORPO."""

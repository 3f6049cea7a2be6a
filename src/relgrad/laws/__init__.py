"""Laws: functions that sample a decision or score it. Pure: no models, randomness only from what is passed in."""

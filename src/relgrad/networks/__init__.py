"""Neural networks, one folder a family; weights/ has what they share: devices, frozen starts, averages, folders."""

"""Sources that list workers: a DNS name, mDNS on the LAN."""

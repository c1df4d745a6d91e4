"""Handing a job to a cluster: as a RayJob on Kubernetes, or through the job API of a running Ray cluster."""

"""Handing a job to a cluster: as a RayJob on Kubernetes, or through the job API of a running Ray cluster.

places.py    local paths that mean nothing there          render.py    the RayJob of an overlay, checked
kuberay.py   what the operator would refuse               security.py  what must never be exposed or written down
limits.py    how far the cluster may grow                 apply.py     kubectl, or Kubernetes' Python client
follow.py    a RayJob until it ends                       address.py   a running Ray cluster instead
driver.py    what runs there
"""

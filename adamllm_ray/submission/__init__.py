"""Handing a job to a cluster: as a RayJob on Kubernetes, or through the job API of a running Ray cluster.

places.py    local paths that mean nothing there          render.py    the RayJob of an overlay
kuberay.py   what the operator would refuse               security.py  what must never be exposed or written down
limits.py    how far the cluster may grow                 fits.py      whether its pods can hold the run
apply.py     kubectl, or Kubernetes' Python client        follow.py    a RayJob until it ends
address.py   a running Ray cluster instead                command.py   all of it, in order
driver.py    what runs there
"""

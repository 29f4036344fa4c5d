__version__ = "0.2.0"


def load_detector(
    folder,  # path of the folder that `prle export` wrote
    device=None,  # where to put the detector; None: a GPU where there is one
):
    "Open an exported detector, as `prle.lab.export.open_exported` does; what that needs is imported only now."
    from prle.lab.export import open_exported

    return open_exported(folder, device)

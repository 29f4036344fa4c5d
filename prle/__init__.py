__version__ = "0.1.0"


def load_detector(folder, device=None):
    "Open the folder of an exported detector, see `prle.lab.export.open_exported`; what that needs is imported now."
    from prle.lab.export import open_exported

    return open_exported(folder, device)

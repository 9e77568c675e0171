"""The machine: files and processes, the notebook's kernel, graphics cards, devices, and words for numbers."""

from .faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    modules="cards compiling devices errors files notebook pages processes requirements signals untrusted words",
    cards="CARDS DOES_NOT_FIT FITS MARGIN SPILLS TIGHT VERDICTS Card card",
    devices="check_model",
    files="PARTIAL bundled digest sync",
    notebook="PAGES Interrupts attended plays",
    requirements="is_missing",
    words="BACKSLASHES GIB MIB WINDOWS_PATH nearest number on_one_line printable quoted short shown sized suggest",
)

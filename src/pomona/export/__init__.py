"""A recogniser in another form: one ONNX file, an engine's own files, a page, an image; and proof that it is the same.

In: a run folder and a format. Out: a folder with the export and a report on its parity, or nothing and the reason why.
Why: an export that answers otherwise than what was measured is worse than none.
"""

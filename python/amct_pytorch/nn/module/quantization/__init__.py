"""Part of the import path that users of the interface know; see quant_calibration_op."""

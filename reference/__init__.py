"""The textbook formulas: dense, any floating dtype, torch only. The executable specification of mmkernels."""

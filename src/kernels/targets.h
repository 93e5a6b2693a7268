// What every kernel file includes before Highway: the instruction sets that are left out.
//
// Kernels use arrays of vectors, so that sums run in the same order on every target; vectors whose
// size is unknown to the compiler (SVE, RVV) cannot be in arrays. Such machines run the NEON or
// scalar code.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif

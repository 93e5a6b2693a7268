// MSE: the clip range with the smallest mean squared error of storing the values on the grid.
#pragma once

#include "amct/core/grid.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#pragma GCC visibility push(default)
namespace amct {

struct MseOptions {
  bool with_offset = true;
  Grid grid = kInt8;
};

/// Searches both ends of the clip range for the smallest mean((x' - x)^2), x' being what is read
/// back from the grid with the factors of minmax_params for that range:
///
/// 1. both ends together, at 2^(-i/16) times the range of the data, down to where what is clipped
///    alone costs more than the best range so far;
/// 2. 0.7 to 1.3 times the range of the data in hundredths: with offset one end, else both;
/// 3. with offset each end by itself, two octaves around in steps of 1/8;
/// 4. each end (without offset: both) around the best, in steps of 1/64 and of 1/512 octave.
///
/// Of a float grid the scale alone: from where the largest value is stored as 1 down to where what
/// is clipped alone costs more than the best scale so far, in steps of 1/4 octave, then in the
/// octave around the best in steps of 1/256, and around that of 1/2048.
///
/// Losses are compared to some thousandths (float grids: exactly). The error is never above that of
/// min-max and, where its percentiles cut nothing off, not above that of IFMR by more than that.
/// Throws StateError where `values` is empty.
SearchResult mse(const ValueCounts& values, const MseOptions& options = {});

Algorithm mse_algorithm();

}  // namespace amct
#pragma GCC visibility pop

// NumPy's archives: a zip file with an .npy file for each array.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace amct {

using NpyValues = std::variant<std::vector<float>, std::vector<std::int32_t>, std::string>;

/// An array of one dimension, or a text (an array of no dimensions). The name is without ".npy".
struct NpyArray {
  std::string name;
  NpyValues values;
};

/// A whole .npz, stored without compression and without times: the same arrays give the same bytes.
/// Throws ValueError for a name that holds a NUL.
std::string to_npz(std::span<const NpyArray> arrays);

/// The arrays of a file; those of other types or more dimensions are left out. Throws ValueError
/// where it is not such an archive, or larger than factors can be.
std::vector<NpyArray> read_npz(const std::string& path);

}  // namespace amct

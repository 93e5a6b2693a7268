// How large what is read may be. A file beyond a limit is refused with a ValueError that says so,
// before much memory or time goes into it. docs/reference/limits.md lists them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amct {

/// Bytes of a text file where nothing below says otherwise: of a record, for one. A record of 128
/// layers with 16,384 channels each takes 190 MB.
inline constexpr std::size_t kMaxTextFileSize = std::size_t{256} << 20;
/// Bytes of a configuration or a definition.
inline constexpr std::size_t kMaxConfigFileSize = std::size_t{64} << 20;
/// Bytes of other JSON; the index of the largest checkpoints takes a tenth.
inline constexpr std::size_t kMaxJsonFileSize = std::size_t{100} << 20;

/// Objects and lists of a configuration file inside one another; it needs three.
inline constexpr std::size_t kMaxConfigDepth = 16;
/// Objects and lists of other JSON inside one another.
inline constexpr std::size_t kMaxJsonDepth = 64;
/// Messages inside one another in protobuf text; the schemas need four.
inline constexpr int kMaxProtobufDepth = 16;

/// Layers of a configuration, a definition, a record, a counts file or an operator.
inline constexpr std::size_t kMaxLayers = std::size_t{1} << 16;
/// Bytes of the name of a layer, in UTF-8.
inline constexpr std::size_t kMaxLayerName = 4096;
/// Patterns among the layers of a definition, each of which is held against every layer.
inline constexpr std::size_t kMaxPatterns = 1024;

/// Channels, heads or layers that the config.json of a model may speak of.
inline constexpr std::int64_t kMaxModelSize = std::int64_t{1} << 24;
/// Channels and heads of a layer in a counts file.
inline constexpr std::int64_t kMaxCountedChannels = std::int64_t{1} << 31;
inline constexpr std::int64_t kMaxCountedHeads = std::int64_t{1} << 20;
/// Bytes of a block of a counts file or a snapshot, as protobuf has it.
inline constexpr std::uint64_t kMaxBlockSize = (std::uint64_t{1} << 31) - 1;

/// Bytes of the header of a safetensors file, as the format has it.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;
/// Elements of a tensor of factors.
inline constexpr std::int64_t kMaxFactors = std::int64_t{1} << 24;
/// Bytes of a NumPy archive; of an array in it, and of all of them, decompressed; arrays in it.
inline constexpr std::uint64_t kMaxNpzFile = std::uint64_t{512} << 20;
inline constexpr std::uint64_t kMaxNpyArray = std::uint64_t{64} << 20;
inline constexpr std::uint64_t kMaxNpzBytes = std::uint64_t{256} << 20;
inline constexpr std::int64_t kMaxNpzArrays = 2 * std::int64_t{kMaxLayers} + 1;

/// Bytes of the message of an error; the rest is cut off, and how much is said.
inline constexpr std::size_t kMaxMessage = 16384;

}  // namespace amct

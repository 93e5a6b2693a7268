// What a layer is to the key/value cache.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// Where a layer is observed.
enum class Tap : std::uint8_t {
  kLinear,  ///< what its projection puts out
  kCache,   ///< what goes into the cache: after normalization of keys and rotary embedding
};

constexpr std::string_view name_of(Tap tap) { return tap == Tap::kLinear ? "linear" : "cache"; }

enum class KVRole : std::uint8_t { kKey, kValue };

constexpr std::string_view name_of(KVRole role) { return role == KVRole::kKey ? "key" : "value"; }

/// What the last part of a layer's name says: "k_proj", "key_proj", "key", "k" or "k_lin" is a key
/// layer, and so on for values; nothing where it says neither.
std::optional<KVRole> role_in_name(std::string_view layer);

}  // namespace amct
#pragma GCC visibility pop

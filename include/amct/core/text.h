// Text of files, and how it is shown.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// Whether `text` is well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms).
bool is_utf8(std::string_view text);

/// The text on one line, in the order of its bytes: as an escape stand control characters ("\x1b",
/// "\u009b"), line and paragraph separators, characters without a width or that turn the direction
/// of what follows ("\u202e"; see Unicode TR 36, "Bidirectional Text Spoofing"), and bytes that are
/// not UTF-8 ("\xff"). All else is as it was.
std::string printable(std::string_view text);

/// Throws ValueError unless `name` can be that of a layer: UTF-8, of up to kMaxLayerName bytes.
/// `where` begins the message.
void check_layer_name(std::string_view name, const std::string& where);
/// Throws ValueError, which `where` begins, for more than kMaxLayers.
void check_layer_count(std::size_t layers, const std::string& where);

}  // namespace amct
#pragma GCC visibility pop

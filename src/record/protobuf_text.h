// Protobuf text format: parsing with errors that a user can act on, printing with shortest floats.
#pragma once

#include <string>
#include <string_view>

namespace google::protobuf {
class Message;
}

namespace amct {

/// Fills `message` from text; of a field given several times the last one counts. Throws ValueError
/// "source: line 3, column 7: ..." at the first error.
void parse_protobuf_text(std::string_view text, const std::string& source,
                         google::protobuf::Message& message);

/// The text of a message; a float is the shortest decimal that reads back as the same float32, with
/// a point or an exponent: 0.05221764, 1.0, 9.5e-05.
std::string to_protobuf_text(const google::protobuf::Message& message);

}  // namespace amct

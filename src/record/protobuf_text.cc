#include "record/protobuf_text.h"

#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/limits.h"

#include <limits>
#include <memory>

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

namespace amct {
namespace {

namespace pb = google::protobuf;

/// Keeps the first error.
class FirstError : public pb::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (!text_.empty()) return;
    // The parser counts from 0; -1 stands for the whole text.
    if (line >= 0)
      text_ = "line " + std::to_string(line + 1) + ", column " + std::to_string(column + 1) + ": ";
    text_ += message;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

class ShortestFloatPrinter : public pb::TextFormat::FastFieldValuePrinter {
 public:
  void PrintFloat(float value, pb::TextFormat::BaseTextGenerator* generator) const override {
    generator->PrintString(shortest_decimal(value));
  }
};

}  // namespace

void parse_protobuf_text(std::string_view text, const std::string& source, pb::Message& message) {
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw ValueError(source + ": larger than 2 GiB");
  }
  FirstError error;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.SetRecursionLimit(kMaxProtobufDepth);
  pb::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  // Unlike Parse, Merge lets the last one count where a field, or a oneof, is given several times.
  message.Clear();
  if (!parser.Merge(&stream, &message)) {
    throw ValueError(source + ": not a text of " + message.GetDescriptor()->name() + ": " +
                     error.text());
  }
}

std::string to_protobuf_text(const pb::Message& message) {
  pb::TextFormat::Printer printer;
  printer.SetDefaultFieldValuePrinter(new ShortestFloatPrinter);  // the printer owns it
  std::string text;
  if (!printer.PrintToString(message, &text)) throw Error("a message cannot be printed as text");
  return text;
}

}  // namespace amct

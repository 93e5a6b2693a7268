#include "amct/core/text.h"

#include "amct/core/error.h"
#include "amct/core/limits.h"

#include <string>

#include <gtest/gtest.h>

#include "core/utf8.h"
#include "support/expect_error.h"

namespace amct {
namespace {

TEST(PrintableTest, WhatCanBeSeenStaysAsItIs) {
  for (const char* text : {"", "model.layers.0.self_attn.k_proj", "a b'\"\\<>&", "größe 层 🙂",
                           "\u00A0\u0301\uFFFD\U0001F600"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(PrintableTest, ControlsStandAsEscapes) {
  EXPECT_EQ(printable("\x1b[2Ja\r\nb\t\x7f"), "\\x1b[2Ja\\x0d\\x0ab\\x09\\x7f");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
  // One character that begins a command of a terminal, as "\x1b[" does.
  EXPECT_EQ(printable("\u009b31mred"), "\\u009b31mred");
  EXPECT_EQ(printable("\u0080\u009f"), "\\u0080\\u009f");
}

TEST(PrintableTest, WhatTurnsOrHidesTextStandsAsEscapes) {
  EXPECT_EQ(printable("\u202Eabc\u202C"), "\\u202eabc\\u202c");
  EXPECT_EQ(printable("\u2066\u2069\u200F\u061C"), "\\u2066\\u2069\\u200f\\u061c");
  EXPECT_EQ(printable("\u2028\u2029"), "\\u2028\\u2029");
  EXPECT_EQ(printable("k\u200B\uFEFF\u2060\u00AD"), "k\\u200b\\ufeff\\u2060\\u00ad");
  EXPECT_EQ(printable("\U000E0041"), "\\U000e0041");
}

TEST(PrintableTest, BytesThatAreNotUtf8StandAsEscapesAndTheRestAsItIs) {
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("a\xE2\x82z层"), "a\\xe2\\x82z层");
  EXPECT_EQ(printable("\xED\xA0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(printable("\xC0\x80"), "\\xc0\\x80");           // an overlong NUL
}

TEST(Utf8CodeTest, OfSequencesOfEveryLength) {
  EXPECT_EQ(utf8_code("a"), U'a');
  EXPECT_EQ(utf8_code("\u00e9"), U'\u00e9');
  EXPECT_EQ(utf8_code("层"), U'层');
  EXPECT_EQ(utf8_code("\U0010FFFF"), U'\U0010FFFF');
}

TEST(LayerNameTest, AnyTextUpToTheLimit) {
  for (const std::string& name :
       {std::string(), std::string("a"), std::string("a\0b", 3), std::string(kMaxLayerName, 'n')}) {
    EXPECT_NO_THROW(check_layer_name(name, "file"));
  }
  support::expect_error<ValueError>(
      [] { check_layer_name(std::string(kMaxLayerName + 1, 'n'), "file"); },
      {"file: ", "'nnnn", "longer than 4096 bytes"});
  support::expect_error<ValueError>([] { check_layer_name("a\xFF\n", "file"); },
                                    {"file: ", "'a\\xff\\x0a'", "UTF-8"});
}

TEST(LayerCountTest, UpToTheLimit) {
  EXPECT_NO_THROW(check_layer_count(kMaxLayers, "file"));
  support::expect_error<ValueError>([] { check_layer_count(kMaxLayers + 1, "file"); },
                                    {"file: ", "65536 layers"});
}

TEST(ErrorTextTest, MessagesAreUtf8AndCutOffBeyondTheLimit) {
  // NOLINTNEXTLINE(misc-misleading-bidirectional): on purpose
  EXPECT_STREQ(ValueError("caf\xE9 \u202E").what(), "caf\\xe9 \\u202e");
  const std::string whole(kMaxMessage, 'x');
  EXPECT_EQ(ValueError(whole).what(), whole);
  EXPECT_EQ(ValueError(whole + "yz").what(), whole + "... and 2 bytes more");
}

}  // namespace
}  // namespace amct

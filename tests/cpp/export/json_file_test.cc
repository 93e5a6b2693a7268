#include "export/json_file.h"

#include "amct/core/error.h"

#include <string>

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;

TEST(JsonFileTest, KeysKeepTheirOrderHoweverManyThereAre) {
  for (const int count : {3, 16, 17, 1000}) {
    std::string text = "{\n";
    for (int i = 0; i < count; ++i) {
      text += "  \"k" + std::to_string(i * 7919 % count) + "\": " + std::to_string(i) +
              (i + 1 < count ? ",\n" : "\n");
    }
    text += "}\n";
    Json json = parse_json(text, "test");
    EXPECT_EQ(to_json_text(json), text);
    json["new"] = 1;
    json["k0"] = "changed";
    EXPECT_EQ(json.size(), static_cast<std::size_t>(count) + 1);
    json.erase("k1");
    json["newer"] = 2;
    json["k1"] = 3;
    EXPECT_EQ(json.size(), static_cast<std::size_t>(count) + 2);
    EXPECT_EQ(json["newer"], 2);
    EXPECT_EQ(json["k0"], "changed");
    EXPECT_TRUE(json.contains("k2"));
    EXPECT_FALSE(json.contains("k"));
    EXPECT_EQ(member(json, "k1"), 3);
    EXPECT_TRUE(member(json, "absent").is_null());
    EXPECT_TRUE(member(Json(3), "k1").is_null());
    const Json copy =
        json;  // NOLINT(performance-unnecessary-copy-initialization): copies are tested
    EXPECT_EQ(copy.size(), json.size());
    EXPECT_TRUE(copy.contains("new"));
  }
}

TEST(JsonFileTest, WhatIsNoJsonIsAValueErrorInOneLine) {
  for (const std::string& text :
       {std::string("{"), std::string("{\"a\": 1,}"), std::string("{\"a\n\": 1}"),
        std::string("nul"), std::string("{\"a\": \x01}"), std::string(), std::string(5, '\0'),
        std::string("{\"a\": NaN}"), "{\"a\": 1" + std::string(400, '9') + "e999999}"}) {
    expect_error<ValueError>([&] { parse_json(text, "name"); }, {"name: not JSON: "});
  }
  expect_error<ValueError>([] { parse_json(R"({"a": {"b": 1, "b": 2}})", "name"); },
                           {"name: the key \"b\" stands twice"});
}

TEST(JsonFileTest, NestingIsLimited) {
  const std::string deep(1'000'000, '[');
  expect_error<ValueError>([&] { parse_json(deep, "name"); }, {"name: JSON is nested too deeply"});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_error<ValueError>([&] { parse_json(objects, "name"); }, {"nested too deeply"});
  parse_json(std::string(60, '[') + std::string(60, ']'), "name");
}

TEST(JsonFileTest, AFileMustHoldAnObject) {
  const support::TempFolder folder;
  support::write_file(folder / "list.json", "[1]");
  expect_error<ValueError>([&] { read_json_object(folder / "list.json"); }, {"list.json", "array"});
  expect_error<IoError>([&] { read_json_object(folder / "none.json"); }, {"none.json"});
  support::write_file(folder / "bytes.json", "{\"a\": \"\xFF\"}");
  expect_error<ValueError>([&] { read_json_object(folder / "bytes.json"); }, {"UTF-8"});
}

TEST(JsonFileTest, NumbersHaveTheDigitsOfAFloat) {
  EXPECT_EQ(json_number(0.05221764F).dump(), "0.05221764");
  EXPECT_EQ(json_number(9.5e-05F).dump(), "9.5e-05");
  EXPECT_EQ(json_number(1.0F).dump(), "1.0");
}

}  // namespace
}  // namespace amct

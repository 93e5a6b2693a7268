#include "export/json_file.h"

#include "amct/core/error.h"
#include "amct/core/limits.h"

#include <filesystem>
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
  const auto nested = [](std::size_t levels) {
    return std::string(levels, '[') + std::string(levels, ']');
  };
  parse_json(nested(kMaxJsonDepth), "name");
  expect_error<ValueError>([&] { parse_json(nested(kMaxJsonDepth + 1), "name"); },
                           {"nested too deeply, more than 64 levels"});
}

TEST(JsonFileTest, ObjectsOfManyObjectsTakeNoTime) {
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i) text += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":{}";
  const Json json = parse_json(text + "}", "name");
  EXPECT_EQ(json.size(), 300'000U);
  EXPECT_TRUE(json["299999"].is_object());
  expect_error<ValueError>([&] { parse_json(text + ",\"7\":1}", "name"); },
                           {"name: the key \"7\" stands twice"});
}

TEST(JsonFileTest, EveryKindOfValueStandsInItsPlace) {
  const std::string text =
      R"({"a":[1,-2,2.5,null,true,"x",[],{}],"b":{"c":[{"d":[[3]]},4]},"e":18446744073709551615})";
  EXPECT_EQ(parse_json(text, "name").dump(), text);
  EXPECT_EQ(parse_json("[[],[1]]", "name").dump(), "[[],[1]]");
  EXPECT_EQ(parse_json("7", "name"), 7);
  expect_error<ValueError>([] { parse_json("7 8", "name"); }, {"name: not JSON"});
}

TEST(JsonFileTest, AFileMustHoldAnObject) {
  const support::TempFolder folder;
  support::write_file(folder / "list.json", "[1]");
  expect_error<ValueError>([&] { read_json_object(folder / "list.json"); }, {"list.json", "array"});
  expect_error<IoError>([&] { read_json_object(folder / "none.json"); }, {"none.json"});
  support::write_file(folder / "large.json", "");
  std::filesystem::resize_file(folder / "large.json", kMaxJsonFileSize + 1);
  expect_error<ValueError>([&] { read_json_object(folder / "large.json"); },
                           {"large.json", "larger than 104857600 bytes"});
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

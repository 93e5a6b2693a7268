#include "export/safetensors.h"

#include "amct/core/error.h"
#include "amct/core/limits.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;

class SafetensorsTest : public support::FolderTest {
 protected:
  /// A file of any header, whose length it is said to have, and data.
  SafetensorsFile read(const std::string& header, const std::string& data = "",
                       std::optional<std::uint64_t> length = std::nullopt) {
    const std::uint64_t n = length.value_or(header.size());
    std::string file(8, '\0');
    std::memcpy(file.data(), &n, 8);
    support::write_file(path, file + header + data);
    return SafetensorsFile(path);
  }
  void refuse(const std::string& header, std::string_view reason, const std::string& data = "",
              std::optional<std::uint64_t> length = std::nullopt) {
    expect_error<ValueError>([&] { read(header, data, length); }, {path, reason});
  }
  const std::string path = folder / "a.safetensors";
};

TEST_F(SafetensorsTest, WhatIsWrittenReadsBack) {
  const std::vector<NewTensor> tensors{
      {"b", {2, 3}, {1, 2, 3, 4, 5, 6.5F}}, {"a\"\n", {}, {1e-38F}}, {"none", {0, 7}, {}}};
  support::write_file(path, to_safetensors(tensors));
  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.data_size(), 28U);
  for (const NewTensor& tensor : tensors) {
    bool found = false;
    for (const TensorInfo& info : file.tensors()) {
      if (info.name != tensor.name) continue;
      found = true;
      EXPECT_EQ(info.shape, tensor.shape);
      EXPECT_EQ(info.dtype, "F32");
      const std::vector<double> values = file.read(info);
      EXPECT_EQ(std::vector<float>(values.begin(), values.end()), tensor.values);
    }
    EXPECT_TRUE(found) << tensor.name;
  }
  // Data begin at a multiple of 8, as the reference implementation writes them.
  std::uint64_t length = 0;
  std::memcpy(&length, support::read_file(path).data(), 8);
  EXPECT_EQ(length % 8, 0U);
}

TEST_F(SafetensorsTest, EveryTypeOfFactorIsWidened) {
  const auto value = [&](const std::string& dtype, const std::string& bytes) {
    const SafetensorsFile file =
        read(R"({"t":{"dtype":")" + dtype + R"(","shape":[1],"data_offsets":[0,)" +
                 std::to_string(bytes.size()) + "]}}",
             bytes);
    return file.read(file.tensors().front()).front();
  };
  EXPECT_EQ(value("BF16", {"\x80\x3F", 2}), 1.0);
  EXPECT_EQ(value("F16", {"\x00\x3C", 2}), 1.0);
  EXPECT_EQ(value("F64", {"\0\0\0\0\0\0\xF0\x3F", 8}), 1.0);
  EXPECT_EQ(value("I8", "\x80"), -128);
  EXPECT_EQ(value("U8", "\x80"), 128);
  EXPECT_EQ(value("I16", {"\xFF\xFF", 2}), -1);
  EXPECT_EQ(value("I32", {"\xFE\xFF\xFF\xFF", 4}), -2);
  EXPECT_EQ(value("I64", {"\x07\0\0\0\0\0\0\0", 8}), 7);
  expect_error<ValueError>([&] { value("F8_E4M3", "\x01"); }, {"type F8_E4M3"});
}

TEST_F(SafetensorsTest, HeadersThatDoNotFitAreRefused) {
  support::write_file(path, "1234567");
  expect_error<ValueError>([&] { const SafetensorsFile file(path); }, {path, "too short"});
  refuse("{}", "its header has", "", 3);
  refuse("{}", "its header has", "", std::uint64_t{1} << 63);
  refuse("{}", "its header has", "", std::numeric_limits<std::uint64_t>::max());
  refuse("{}", "its header has", "", 100'000'001);
  refuse("", "not a JSON object");
  refuse("[]", "not a JSON object");
  refuse("{\"a\":", "not JSON");
  refuse("{\"\xFF\": 1}", "not a JSON object");
  refuse("{\"a\":" + std::string(100'000, '[') + "}", "nested");
  EXPECT_TRUE(read("{}").tensors().empty());
  EXPECT_TRUE(read(R"({"__metadata__": {"a": "b"}}  )").tensors().empty());
}

TEST_F(SafetensorsTest, TensorsThatMakeNoSenseAreRefused) {
  const auto tensor = [](const std::string& rest) {
    return R"({"t":{"dtype":"F32",)" + rest + "}}";
  };
  refuse(R"({"t": 1})", "dtype");
  refuse(R"({"t": {"dtype": "F31", "shape": [], "data_offsets": [0, 4]}})", "dtype", "1234");
  refuse(tensor(R"("data_offsets":[0,4])"), "shape", "1234");
  refuse(tensor(R"("shape":[-1],"data_offsets":[0,4])"), "shape", "1234");
  refuse(tensor(R"("shape":[1.5],"data_offsets":[0,4])"), "shape", "1234");
  refuse(tensor(R"("shape":[18446744073709551615,2],"data_offsets":[0,4])"), "shape", "1234");
  refuse(tensor(R"("shape":[4611686018427387904,4],"data_offsets":[0,0])"), "shape");
  refuse(tensor(R"("shape":[1])"), "data_offsets");
  refuse(tensor(R"("shape":[1],"data_offsets":[4,0])"), "data_offsets", "1234");
  refuse(tensor(R"("shape":[1],"data_offsets":[0,4,8])"), "data_offsets", "1234");
  refuse(tensor(R"("shape":[1],"data_offsets":[0,8])"), "do not fit its shape", "12345678");
  refuse(tensor(R"("shape":[1],"data_offsets":[4,8])"), "gap", "12345678");
  refuse(tensor(R"("shape":[1],"data_offsets":[0,4])"), "holds 3 bytes", "123");
  refuse(tensor(R"("shape":[1],"data_offsets":[0,4])"), "holds 5 bytes", "12345");
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string b = R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})";
  refuse("{" + a + "," + b + "}", "overlaps", "12345678");
  refuse("{" + a + "," + a + "}", "twice", "12345678");
}

TEST_F(SafetensorsTest, NamesOfAnyTextStandEscapedInMessages) {
  const std::string message = expect_error<ValueError>(
      [&] { read(R"({"a\u0000\n": {"dtype": 3}})"); }, {R"(tensor "a\u0000\n")"});
  EXPECT_EQ(message.find('\0'), std::string::npos);
}

TEST_F(SafetensorsTest, HeadersUpToTheLimit) {
  refuse("{}", "100000001 bytes", std::string(kMaxSafetensorsHeader, ' '),
         kMaxSafetensorsHeader + 1);
  // One of that size is read: spaces behind its end are as good as none.
  EXPECT_TRUE(read("{}" + std::string(kMaxSafetensorsHeader - 2, ' ')).tensors().empty());
}

TEST_F(SafetensorsTest, FactorsUpToTheLimit) {
  const auto of = [&](std::int64_t size) {
    const SafetensorsFile file = read(R"({"t":{"dtype":"U8","shape":[)" + std::to_string(size) +
                                          R"(],"data_offsets":[0,)" + std::to_string(size) + "]}}",
                                      std::string(static_cast<std::size_t>(size), '\1'));
    return file.read(file.tensors().front()).size();
  };
  EXPECT_EQ(of(kMaxFactors), static_cast<std::size_t>(kMaxFactors));
  expect_error<ValueError>([&] { of(kMaxFactors + 1); }, {"tensor \"t\"", "too large"});
}

TEST_F(SafetensorsTest, APipeIsNotWaitedFor) {
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  expect_error<IoError>([&] { const SafetensorsFile file(path); }, {path});
}

TEST_F(SafetensorsTest, WhatIsNotThereIsAnIoError) {
  expect_error<IoError>([&] { const SafetensorsFile file(folder / "none"); }, {"none"});
  expect_error<IoError>([&] { const SafetensorsFile file(folder.path()); }, {folder.path()});
}

}  // namespace
}  // namespace amct

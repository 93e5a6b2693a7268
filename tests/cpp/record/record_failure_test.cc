// A record that cannot be written or is not one stays what it was.
#include "amct/core/error.h"
#include "amct/record/record_file.h"

#include <cerrno>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;
using support::mode_of;
using support::read_file;
using support::write_file;
using Names = std::vector<std::string>;

class RecordFailureTest : public support::FolderTest {
 protected:
  const std::string path = folder / "record.txt";
  const std::vector<LayerRecord> layers{{"a", {{1, 0}}}};
};

TEST_F(RecordFailureTest, GarbageIsRefusedAndUntouched) {
  for (const std::string& garbage :
       {std::string("this is my thesis, not a record"), std::string("record { key: \"a\""),
        std::string("\x7F"
                    "ELF\xFF\x00\x01",
                    7),
        std::string("{\"json\": true}")}) {
    write_file(path, garbage);
    expect_error<ValueError>([&] { merge_into_record(path, layers, {}); }, {path});
    EXPECT_EQ(read_file(path), garbage);
    EXPECT_EQ(folder.names(), Names{"record.txt"});
  }
}

TEST_F(RecordFailureTest, PathsThatNameNoFile) {
  expect_error<ValueError>([&] { merge_into_record("", layers, {}); }, {"empty"});
  expect_error<ValueError>([&] { merge_into_record(folder.path(), layers, {}); },
                           {folder.path(), "folder"});
  expect_error<ValueError>([&] { merge_into_record(folder / std::string(256, 'x'), layers, {}); },
                           {"255 bytes"});
  expect_error<ValueError>([&] { write_empty_record(folder.path()); }, {"folder"});
}

TEST_F(RecordFailureTest, AFullDiskLeavesTheRecordThatWasToBeReplaced) {
  write_record(path, layers);
  const std::string before = read_file(path);
  const std::vector<LayerRecord> others(20, {"b", {{2, 0}}});
  const int code = support::with_file_size_limit(8, [&] {
    try {
      write_record(path, others);
    } catch (const IoError& error) {
      return error.code() == EFBIG ? 0 : 1;
    }
    return 2;
  });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(folder.names(), Names{"record.txt"});
}

TEST_F(RecordFailureTest, WhatIsWrittenReplacesWhateverTheFileHeld) {
  write_file(path, "my thesis");
  write_record(path, layers);
  EXPECT_EQ(read_record(path), layers);
  const std::vector<LayerRecord> others{{"c", {{2, 1}}}, {"b", {{3, 0}}}};
  write_record(path, others);
  EXPECT_EQ(read_record(path), others);
  write_record(path, {});
  EXPECT_EQ(read_file(path), "");
}

TEST_F(RecordFailureTest, APathBelowAFileIsAnIoError) {
  write_file(folder / "file", "x");
  expect_error<IoError>([&] { merge_into_record(folder / "file/record", layers, {}); },
                        {folder / "file"});
  EXPECT_EQ(read_file(folder / "file"), "x");
}

TEST_F(RecordFailureTest, APathThatCannotBeLookedUpIsAnIoErrorToo) {
  std::filesystem::create_symlink("loop", folder / "loop");
  expect_error<IoError>([&] { merge_into_record(folder / "loop", layers, {}); }, {folder / "loop"});
  std::string longest = folder.path();
  for (int i = 0; i < 40; ++i) longest += "/" + std::string(200, 'd');
  expect_error<IoError>([&] { merge_into_record(longest, layers, {}); }, {"dddd"});
}

TEST_F(RecordFailureTest, AFullDiskKeepsTheOldRecordWholeAndLeavesNoTemporary) {
  merge_into_record(path, layers, {});
  const std::string before = read_file(path);
  const LayerRecord large{"large", std::vector<QuantParams>(2000, {0.12345678F, 3})};
  const int result = support::with_file_size_limit(4096, [&] {
    try {
      merge_into_record(path, std::vector<LayerRecord>{large}, {});
    } catch (const IoError& error) {
      return error.code() == EFBIG && error.path() == path ? 0 : 1;
    }
    return 2;
  });
  EXPECT_EQ(result, 0);
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(folder.names(), Names{"record.txt"});
}

TEST_F(RecordFailureTest, AFullDiskWithoutAnOldRecordLeavesNothing) {
  const LayerRecord large{"large", std::vector<QuantParams>(2000, {0.12345678F, 3})};
  const int result = support::with_file_size_limit(100, [&] {
    try {
      merge_into_record(path, std::vector<LayerRecord>{large}, {});
    } catch (const IoError&) {
      return 0;
    }
    return 2;
  });
  EXPECT_EQ(result, 0);
  EXPECT_TRUE(folder.names().empty());
}

TEST_F(RecordFailureTest, ModesDoNotDependOnTheUmask) {
  for (const mode_t mask : {mode_t{0077}, mode_t{0000}}) {
    const std::string top = folder / ("mask" + std::to_string(mask));
    support::with_umask(mask, [&] { merge_into_record(top + "/sub/record.txt", layers, {}); });
    EXPECT_EQ(mode_of(top), 0750U) << mask;
    EXPECT_EQ(mode_of(top + "/sub"), 0750U) << mask;
    EXPECT_EQ(mode_of(top + "/sub/record.txt"), 0640U) << mask;
    support::with_umask(mask, [&] { write_empty_record(top + "/new/record.txt"); });
    EXPECT_EQ(mode_of(top + "/new"), 0750U) << mask;
    EXPECT_EQ(mode_of(top + "/new/record.txt"), 0640U) << mask;
  }
}

TEST_F(RecordFailureTest, ManyThreadsMergeWithoutLosingALayer) {
  constexpr int kThreads = 8;
  constexpr int kEach = 12;
  Names order;
  for (int i = 0; i < kThreads * kEach; ++i) order.push_back("layer" + std::to_string(i));
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = kEach; i-- > 0;) {
        const int n = t + i * kThreads;
        const LayerRecord layer{order[static_cast<std::size_t>(n)], {{1.0F, n - 50}}};
        merge_into_record(path, std::vector<LayerRecord>{layer}, order);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), order.size());
  for (std::size_t i = 0; i < record.size(); ++i) {
    EXPECT_EQ(record[i].name, order[i]);
    EXPECT_EQ(record[i].params[0].offset, static_cast<std::int32_t>(i) - 50);
  }
}

}  // namespace
}  // namespace amct

#include "amct/core/file.h"

#include "amct/core/error.h"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
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
using support::FolderTest;
using support::mode_of;
using support::read_file;
using support::with_umask;
using support::write_file;

using FileTest = FolderTest;

TEST(Utf8Test, AcceptsWellFormedText) {
  for (const char* text :
       {"", "ascii", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "层.k_proj"}) {
    EXPECT_TRUE(is_utf8(text)) << text;
  }
  EXPECT_TRUE(is_utf8(std::string_view("a\0b", 3)));
}

TEST(Utf8Test, RefusesMalformedText) {
  for (const char* text :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xE0\xA0",
        "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF", "\xF0\x90\x80", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xFE", "\xFF", "ok\xE2\x82", "\xE2\x28\xA1"}) {
    EXPECT_FALSE(is_utf8(text));
  }
}

TEST_F(FileTest, ReadsWhatIsThereAndRefusesMore) {
  const std::string path = folder / "text";
  const std::string content(200000, 'x');
  write_file(path, content);
  EXPECT_EQ(read_text_file(path), content);
  EXPECT_EQ(read_text_file(path, 200000), content);
  expect_error<ValueError>([&] { read_text_file(path, 199999); }, {path, "199999 bytes"});
  write_file(path, "");
  EXPECT_EQ(read_text_file(path), "");
}

TEST_F(FileTest, AnEndlessFileIsRefusedAtTheLimit) {
  expect_error<ValueError>([] { read_text_file("/dev/zero", 1 << 20); }, {"/dev/zero", "1048576"});
}

/// Bytes that this process has read; nothing where the system does not count them.
std::optional<std::uint64_t> bytes_read() {
  std::ifstream file("/proc/self/io");
  for (std::string word; file >> word;) {
    if (std::uint64_t bytes = 0; word == "rchar:" && file >> bytes) return bytes;
  }
  return {};
}

TEST_F(FileTest, AFileWhoseSizeIsPastTheLimitIsNotRead) {
  constexpr std::size_t kSize = std::size_t{1} << 20;
  write_file(folder / "large", std::string(kSize, 'x'));
  const std::optional<std::uint64_t> before = bytes_read();
  if (!before) GTEST_SKIP() << "the system does not count what is read";
  expect_error<ValueError>([&] { read_text_file(folder / "large", kSize - 1); }, {"1048575 bytes"});
  EXPECT_LT(*bytes_read() - *before, kSize / 2);
  read_text_file(folder / "large");
  EXPECT_GE(*bytes_read() - *before, kSize);  // or nothing is measured
}

/// A file of /proc has no size before it is read, as one that grows meanwhile has another one.
TEST_F(FileTest, AFileThatHoldsMoreThanItsSizeIsRefusedAtTheLimit) {
  const std::string content = read_text_file("/proc/self/status");
  ASSERT_EQ(std::filesystem::file_size("/proc/self/status"), 0U);
  ASSERT_GT(content.size(), 100U);
  expect_error<ValueError>([] { read_text_file("/proc/self/status", 100); }, {"100 bytes"});
}

TEST_F(FileTest, ATextMayComeThroughAPipeUpToTheLimit) {
  const std::string path = folder / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const std::string content(1000, 'x');
  const auto read = [&](std::size_t limit) {
    std::thread writer([&] { write_file(path, content); });
    std::string text;
    try {
      text = read_text_file(path, limit);
    } catch (...) {
      writer.join();
      throw;
    }
    writer.join();
    return text;
  };
  EXPECT_EQ(read(1000), content);
  expect_error<ValueError>([&] { read(999); }, {path, "999 bytes"});
}

TEST_F(FileTest, APipeInThePlaceOfABinaryFileIsNotWaitedFor) {
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error<ValueError>([&] { const FileReader file(folder / "pipe"); }, {"pipe", "a pipe"});
  expect_error<ValueError>([] { const FileReader file("/dev/zero"); }, {"/dev/zero", "device"});
}

TEST_F(FileTest, ALinkInThePlaceOfTheTargetIsReplacedAndNotFollowed) {
  const support::TempFolder elsewhere;
  write_file(elsewhere / "precious", "as it was");
  std::filesystem::create_symlink(elsewhere / "precious", folder / "out");
  std::filesystem::create_symlink(elsewhere / "none", folder / "dangling");
  for (const char* name : {"out", "dangling"}) {
    write_file_atomically(folder / name, "x");
    EXPECT_FALSE(std::filesystem::is_symlink(folder / name));
    EXPECT_EQ(read_file(folder / name), "x");
  }
  EXPECT_EQ(read_file(elsewhere / "precious"), "as it was");
  EXPECT_EQ(elsewhere.names(), std::vector<std::string>{"precious"});
  // The folder is where the user says it is, a link or not.
  std::filesystem::create_directory_symlink(elsewhere.path(), folder / "linked");
  write_file_atomically(folder / "linked/new", "y");
  EXPECT_EQ(read_file(elsewhere / "new"), "y");
}

TEST_F(FileTest, NothingIsThereBeforeItIsWhole) {
  {
    AtomicFile file(folder / "out");
    file.append("half");
    EXPECT_EQ(file.read_back(1, 2), "al");
  }
  EXPECT_TRUE(folder.names().empty());
  AtomicFile file(folder / "out");
  file.append("whole");
  file.commit();
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(mode_of(folder / "out"), 0640U);
}

TEST_F(FileTest, ReadErrorsNameThePath) {
  const std::string missing = folder / "missing";
  try {
    read_text_file(missing);
    FAIL() << "read a missing file";
  } catch (const IoError& error) {
    EXPECT_EQ(error.code(), ENOENT);
    EXPECT_EQ(error.path(), missing);
  }
  expect_error<ValueError>([&] { read_text_file(folder.path()); }, {folder.path(), "folder"});
  write_file(folder / "binary", "a\xFFz");
  expect_error<ValueError>([&] { read_text_file(folder / "binary"); },
                           {folder / "binary", "UTF-8"});
  write_file(folder / "file", "x");
  expect_error<IoError>([&] { read_text_file(folder / "file/below"); }, {"file/below"});
  // A NUL would cut the name short and another file would be read.
  expect_error<ValueError>([&] { read_text_file(folder / std::string("file\0.txt", 9)); }, {"NUL"});
}

TEST_F(FileTest, OutputPathsThatNameNoFile) {
  expect_error<ValueError>([] { check_output_path(""); }, {"empty"});
  expect_error<ValueError>([&] { check_output_path(folder.path()); }, {folder.path(), "folder"});
  expect_error<ValueError>([&] { check_output_path(folder / "new/"); }, {"new/", "folder"});
  expect_error<ValueError>([&] { check_output_path(std::string("a\0b", 3)); }, {"NUL"});
  expect_error<ValueError>([&] { check_output_path(folder / std::string(256, 'n')); },
                           {"nnnn", "255 bytes"});
  expect_error<ValueError>([&] { check_output_path(folder / (std::string(256, 'n') + "/f")); },
                           {"255 bytes"});
  EXPECT_NO_THROW(check_output_path(folder / std::string(255, 'n')));
  EXPECT_NO_THROW(check_output_path(folder / "not/yet/there"));
  for (const std::string& bad : {std::string(), folder.path(), folder / "new/"}) {
    EXPECT_THROW(write_file_atomically(bad, "x"), ValueError) << bad;
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST_F(FileTest, DevicesPipesAndLinksToThemAreNotReplaced) {
  // By whoever may, they would be replaced by a file; so would the link that /dev/stdout is.
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::filesystem::create_symlink("/dev/null", folder / "link");
  for (const std::string& special : {std::string("/dev/null"), pipe, folder / "link"}) {
    expect_error<ValueError>([&] { check_output_path(special); }, {special, "device, pipe or"});
    expect_error<ValueError>([&] { write_file_atomically(special, "x"); }, {special});
  }
  std::filesystem::create_symlink("nowhere", folder / "dangling");
  EXPECT_NO_THROW(check_output_path(folder / "dangling"));
}

TEST_F(FileTest, WritesAndReplacesWithoutLeavingATemporary) {
  const std::string path = folder / "out";
  write_file_atomically(path, "first");
  EXPECT_EQ(read_file(path), "first");
  write_file_atomically(path, std::string(1 << 20, 'b'));
  EXPECT_EQ(read_file(path).size(), std::size_t{1} << 20);
  write_file_atomically(path, "");
  EXPECT_EQ(read_file(path), "");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST_F(FileTest, ALongestNameCanBeWritten) {
  const std::string name(255, 'n');
  write_file_atomically(folder / name, "x");
  EXPECT_EQ(folder.names(), std::vector<std::string>{name});
}

TEST_F(FileTest, ModesDoNotDependOnTheUmask) {
  for (const mode_t mask : {mode_t{0077}, mode_t{0000}, mode_t{0777}}) {
    const std::string top = folder / ("mask" + std::to_string(mask));
    with_umask(mask, [&] { write_file_atomically(top + "/a/b/file", "x"); });
    EXPECT_EQ(mode_of(top), 0750U) << mask;
    EXPECT_EQ(mode_of(top + "/a"), 0750U) << mask;
    EXPECT_EQ(mode_of(top + "/a/b"), 0750U) << mask;
    EXPECT_EQ(mode_of(top + "/a/b/file"), 0640U) << mask;
  }
}

TEST_F(FileTest, AFolderThatIsThereKeepsItsMode) {
  ASSERT_EQ(::mkdir((folder / "kept").c_str(), 0700), 0);
  ASSERT_EQ(::chmod((folder / "kept").c_str(), 0700), 0);
  write_file_atomically(folder / "kept/file", "x");
  EXPECT_EQ(mode_of(folder / "kept"), 0700U);
}

TEST_F(FileTest, AReplacedFileGetsTheModeOfANewOne) {
  write_file(folder / "out", "old");
  ASSERT_EQ(::chmod((folder / "out").c_str(), 0666), 0);
  write_file_atomically(folder / "out", "new");
  EXPECT_EQ(mode_of(folder / "out"), 0640U);
}

TEST_F(FileTest, APathBelowARegularFileIsAnIoErrorThatNamesIt) {
  write_file(folder / "file", "x");
  expect_error<IoError>([&] { write_file_atomically(folder / "file/below", "y"); },
                        {folder / "file"});
  expect_error<IoError>([&] { write_file_atomically(folder / "file/a/b", "y"); },
                        {folder / "file"});
  EXPECT_EQ(read_file(folder / "file"), "x");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"file"});
}

TEST_F(FileTest, ASymlinkLoopIsAnIoError) {
  std::filesystem::create_symlink("loop", folder / "loop");
  expect_error<IoError>([&] { read_text_file(folder / "loop"); }, {"loop"});
  expect_error<IoError>([&] { write_file_atomically(folder / "loop/file", "y"); }, {"loop"});
}

TEST_F(FileTest, ARelativePathWithoutAFolderIsWrittenHere) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  write_file_atomically("plain", "x");
  write_file_atomically("sub/../sub/./file", "y");
  std::filesystem::current_path(before);
  EXPECT_EQ(read_file(folder / "plain"), "x");
  EXPECT_EQ(read_file(folder / "sub/file"), "y");
}

TEST_F(FileTest, OneFileIsNotTakenForTwo) {
  const auto check = [&](const std::vector<std::string>& names) {
    std::vector<std::string> paths;
    for (const std::string& name : names) paths.push_back(folder / name);
    check_different_files(paths);
  };
  write_file(folder / "a", "x");
  std::filesystem::create_directory(folder / "sub");
  std::filesystem::create_symlink("a", folder / "link");
  EXPECT_NO_THROW(check({}));
  EXPECT_NO_THROW(check({"a", "b", "sub/a", "sub", "missing"}));
  expect_error<ValueError>([&] { check({"b", "a", "c", "a"}); },
                           {"a' is given twice, where two files are needed"});
  for (const std::string other : {"./a", "sub/../a", "link"}) {
    expect_error<ValueError>([&] { check({"a", other}); },
                             {"a' and '" + folder.path(), other, "are one file"});
  }
  // Also files that are not there yet.
  EXPECT_THROW(check({"new/b", "new/x/../b"}), ValueError);
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  EXPECT_THROW(check_different_files(std::array{std::string("a"), folder / "a"}), ValueError);
  EXPECT_THROW(check_different_files(std::array{std::string("n"), folder / "n"}), ValueError);
  std::filesystem::current_path(before);
}

TEST_F(FileTest, AFullDiskLeavesTheOldFileWholeAndNoTemporary) {
  const std::string path = folder / "out";
  write_file(path, "the old content");
  const int code = support::with_file_size_limit(1000, [&] {
    try {
      write_file_atomically(path, std::string(100000, 'n'));
    } catch (const IoError& error) {
      return error.code() == EFBIG && error.path() == path ? 0 : 1;
    }
    return 2;
  });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(read_file(path), "the old content");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST_F(FileTest, ReadersNeverSeeHalfAFileWhileManyWriteIt) {
  const std::string path = folder / "deep/er/out";
  write_file_atomically(path, std::string(50000, 'a'));
  std::vector<std::thread> writers;
  for (const char letter : {'a', 'b', 'c'}) {
    writers.emplace_back([&path, letter] {
      for (int i = 0; i < 30; ++i) write_file_atomically(path, std::string(50000, letter));
    });
  }
  int mixed = 0;
  for (int i = 0; i < 60; ++i) {
    const std::string seen = read_text_file(path);
    if (seen != std::string(50000, seen.empty() ? '?' : seen[0])) ++mixed;
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(mixed, 0);
}

}  // namespace
}  // namespace amct

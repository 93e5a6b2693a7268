#include "amct/core/error.h"

#include <cerrno>
#include <type_traits>

#include <gtest/gtest.h>

namespace amct {
namespace {

TEST(ErrorTest, EveryErrorCanBeCaughtAsOne) {
  static_assert(std::is_base_of_v<std::runtime_error, Error>);
  static_assert(std::is_base_of_v<Error, ValueError>);
  static_assert(std::is_base_of_v<Error, TypeError>);
  static_assert(std::is_base_of_v<Error, IoError>);
  static_assert(std::is_base_of_v<StateError, NonFiniteError>);
  EXPECT_THROW(throw NonFiniteError("x", 1, 2), Error);
}

TEST(ErrorTest, IoErrorSaysWhatWhereAndWhy) {
  const IoError error(ENOENT, "read", "/no/such/file");
  EXPECT_EQ(error.code(), ENOENT);
  EXPECT_EQ(error.path(), "/no/such/file");
  EXPECT_STREQ(error.what(), "cannot read '/no/such/file': No such file or directory");
}

TEST(ErrorTest, NonFiniteErrorKeepsItsNumbers) {
  const NonFiniteError error("bad", 3, 17);
  EXPECT_EQ(error.count(), 3);
  EXPECT_EQ(error.first_index(), 17);
}

TEST(ErrorTest, NamesWithControlCharactersLeaveItOneLine) {
  const ValueError error("no layer '" + std::string("a\nb\x1B[2Jc\0d\x7F", 11) + "' é");
  EXPECT_STREQ(error.what(), "no layer 'a\\x0ab\\x1b[2Jc\\x00d\\x7f' é");
}

}  // namespace
}  // namespace amct

// Expecting an error of an exact type whose message names what it should.
#pragma once

#include <initializer_list>
#include <source_location>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

#include <gtest/gtest.h>

namespace amct::support {

/// Calls `call` and fails unless it throws exactly E with a one-line message that holds every one
/// of `parts`. Returns the message.
template <typename E, typename Call>
std::string expect_error(Call&& call, std::initializer_list<std::string_view> parts,
                         std::source_location where = std::source_location::current()) {
  const testing::ScopedTrace trace(where.file_name(), static_cast<int>(where.line()),
                                   "error expected here");
  try {
    std::forward<Call>(call)();
  } catch (const E& error) {
    const std::string message = error.what();
    EXPECT_TRUE(typeid(error) == typeid(E))
        << "thrown: " << typeid(error).name() << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string_view part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
    }
    return message;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error was thrown: " << typeid(error).name() << ": " << error.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

}  // namespace amct::support

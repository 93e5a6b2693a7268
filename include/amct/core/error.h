// The errors of the library. Everything that is thrown on purpose derives from amct::Error, and its
// what() names the place (file, layer, key), what is wrong, and how to mend it, in one line.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#pragma GCC visibility push(default)
namespace amct {

/// Base of all errors thrown by the library.
class Error : public std::runtime_error {
 public:
  /// Control characters, such that turn the direction of text, and bytes that are not UTF-8, all of
  /// which names from files may hold, are written as escapes ("\x0a"), so that what() stays one
  /// line of UTF-8, and moves no cursor. What is beyond kMaxMessage bytes is cut off.
  explicit Error(const std::string& what);
};

/// A value the caller gave is outside what is documented for it. Python: ValueError.
class ValueError : public Error {
 public:
  using Error::Error;
};

/// A value has a type that is not supported, a float64 tensor for instance. Python: TypeError.
class TypeError : public Error {
 public:
  using Error::Error;
};

/// The request does not fit what was seen or done so far: a batch of another shape, an empty
/// tensor, nothing to quantize. Python: RuntimeError.
class StateError : public Error {
 public:
  using Error::Error;
};

/// A batch holds NaN or infinite values. Nothing of that batch was added. Python: RuntimeError.
class NonFiniteError : public StateError {
 public:
  /// `count` values of the batch are not finite; the first has the flat, row-major index
  /// `first_index` (in elements).
  NonFiniteError(const std::string& what, std::int64_t count, std::int64_t first_index)
      : StateError(what), count_(count), first_index_(first_index) {}

  std::int64_t count() const { return count_; }
  std::int64_t first_index() const { return first_index_; }

 private:
  std::int64_t count_;
  std::int64_t first_index_;
};

/// The operating system refused to read or write a file. Python: OSError (or the subclass that
/// Python has for the code: PermissionError, FileNotFoundError, ...).
class IoError : public Error {
 public:
  /// `code` is an errno value; `path` the file or folder concerned; `action` a verb: "read",
  /// "create".
  IoError(int code, const std::string& action, const std::string& path);

  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

}  // namespace amct
#pragma GCC visibility pop

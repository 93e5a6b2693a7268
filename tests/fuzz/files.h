// Files in memory for fuzz targets, which read by path.
#pragma once

#include "amct/core/error.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <unistd.h>

namespace amct::fuzz {

/// A folder of this process in memory, where the machine has one.
inline const std::string& folder() {
  // Never ends, for it is used as the process does.
  static const std::string& path = *new std::string([] {
    const std::filesystem::path base = std::filesystem::is_directory("/dev/shm")
                                           ? "/dev/shm"
                                           : std::filesystem::temp_directory_path();
    const std::filesystem::path made = base / ("amct-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directories(made);
    std::atexit([] { std::filesystem::remove_all(folder()); });
    return made.string();
  }());
  return path;
}

/// Writes a file of the folder; its path.
inline std::string file(const std::string& name, std::string_view content) {
  const std::string path = folder() + "/" + name;
  std::ofstream(path, std::ios::binary)
      .write(content.data(), static_cast<std::streamsize>(content.size()));
  return path;
}

/// Calls action(): what the library throws on purpose is as it should be, and all else a crash.
template <typename Action>
void expect_no_crash(Action action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    if (message.empty() || message.find('\n') != std::string_view::npos) std::abort();
  }
}

/// Takes pieces off the front of an input; zeros and empty texts where nothing is left.
class Input {
 public:
  explicit Input(std::string_view rest) : rest_(rest) {}

  bool empty() const { return rest_.empty(); }
  template <typename T>
  T number() {
    T value{};
    const std::string_view bytes = text(sizeof(T));
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  std::string_view text(std::size_t size) {
    const std::string_view front = rest_.substr(0, size);
    rest_.remove_prefix(front.size());
    return front;
  }
  /// Up to a NUL, as C takes it.
  std::string text() {
    std::string line(rest_.substr(0, rest_.find('\0')));
    text(line.size() + 1);
    return line;
  }

 private:
  std::string_view rest_;
};

inline std::string_view text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace amct::fuzz

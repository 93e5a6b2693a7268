#include "export/npz.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/limits.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include <zip.h>

namespace amct {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::string_view kExtension = ".npy";
constexpr std::size_t kAlignment = 64;

template <auto function>
struct Call {
  template <typename T>
  void operator()(T* pointer) const {
    function(pointer);
  }
};
using Archive = std::unique_ptr<zip_t, Call<zip_discard>>;
using Source = std::unique_ptr<zip_source_t, Call<zip_source_free>>;
using ZipFile = std::unique_ptr<zip_file_t, Call<zip_fclose>>;

[[noreturn]] void fail(const std::string& where, const char* reason) {
  throw ValueError(where + ": " + reason);
}

/// Whether libzip takes a name with it for one that is not UTF-8.
bool is_refused_in_zip(char c) {
  return static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n' && c != '\r';
}

/// UTF-8 as UTF-32, which is how NumPy keeps text; the text is well-formed.
std::u32string to_utf32(std::string_view text) {
  std::u32string result;
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    int more = 0;  // bytes that follow
    if (lead >= 0xC0) more = lead < 0xE0 ? 1 : 2;
    if (lead >= 0xF0) more = 3;
    char32_t code = more == 0 ? lead : lead & (0x3FU >> more);
    for (++i; i < text.size() && (static_cast<unsigned char>(text[i]) & 0xC0U) == 0x80U; ++i) {
      code = (code << 6) | (static_cast<unsigned char>(text[i]) & 0x3FU);
    }
    result += code;
  }
  return result;
}

std::string to_utf8(std::span<const char32_t> text) {
  std::string result;
  for (const char32_t code : text) {
    const auto tail = [&](int shift) {
      result += static_cast<char>(0x80U | ((code >> shift) & 0x3FU));
    };
    if (code < 0x80) {
      result += static_cast<char>(code);
    } else if (code < 0x800) {
      result += static_cast<char>(0xC0U | (code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      result += static_cast<char>(0xE0U | (code >> 12));
      tail(6);
      tail(0);
    } else {
      result += static_cast<char>(0xF0U | ((code >> 18) & 7U));
      tail(12);
      tail(6);
      tail(0);
    }
  }
  return result;
}

template <typename List>
std::string npy_of(const std::string& descr, const std::string& shape, const List& values) {
  std::string header("{'descr': '");
  header.append(descr).append("', 'fortran_order': False, 'shape': ").append(shape).append(", }");
  constexpr std::size_t kFixed = 10;  // magic, version, length of the header
  header.resize((kFixed + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment - kFixed,
                ' ');
  header.back() = '\n';
  std::string file(kMagic);
  file += '\x01';
  file += '\0';
  file += static_cast<char>(header.size() & 0xFFU);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  const auto bytes = std::as_bytes(std::span(values));
  return file.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::string one_dimension(std::size_t size) {
  std::string shape("(");
  return shape.append(std::to_string(size)).append(",)");
}

std::string npy_of(const NpyValues& values) {
  if (const auto* text = std::get_if<std::string>(&values)) {
    const std::u32string wide = to_utf32(*text);
    return npy_of("<U" + std::to_string(wide.size()), "()", wide);
  }
  if (const auto* floats = std::get_if<std::vector<float>>(&values)) {
    return npy_of("<f4", one_dimension(floats->size()), *floats);
  }
  const auto& integers = std::get<std::vector<std::int32_t>>(values);
  return npy_of("<i4", one_dimension(integers.size()), integers);
}

template <typename T>
std::vector<T> elements(std::string_view bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  bytes.copy(reinterpret_cast<char*>(values.data()), values.size() * sizeof(T));
  return values;
}

/// The values of an .npy file; nothing for types and shapes that factors do not have. `where`
/// begins the message of a ValueError.
std::optional<NpyValues> values_of(std::string_view file, const std::string& where) {
  constexpr std::size_t kVersionAt = 6;
  if (!file.starts_with(kMagic) || file.size() < 12) fail(where, "not an .npy file");
  const auto byte = [&](std::size_t i) {
    return static_cast<std::size_t>(static_cast<unsigned char>(file[i]));
  };
  const bool is_long = byte(kVersionAt) > 1;
  std::size_t length = byte(8) | (byte(9) << 8);
  if (is_long) length |= (byte(10) << 16) | (byte(11) << 24);
  const std::size_t start = is_long ? 12 : 10;
  if (length > file.size() - start) fail(where, "its header is longer than the file");
  const std::string_view header = file.substr(start, length);
  const std::string_view data = file.substr(start + length);
  const auto field = [&](std::string_view name, char end) {
    const std::size_t at = header.find(name);
    if (at == std::string_view::npos) fail(where, "its header lacks a field");
    const std::size_t from = at + name.size();
    return header.substr(from, header.find(end, from) - from);
  };
  const std::string_view descr = field("'descr': '", '\'');
  const std::string_view shape = field("'shape': (", ')');
  const std::size_t comma = shape.find(',');
  const bool is_list = comma != std::string_view::npos && comma + 1 == shape.size();
  if (descr == "<f4" && is_list) return elements<float>(data);
  if (descr == "<i4" && is_list) return elements<std::int32_t>(data);
  if (descr.starts_with("<U") && shape.empty()) return to_utf8(elements<char32_t>(data));
  return std::nullopt;
}

std::string read_entry(zip_t* archive, zip_uint64_t index, std::uint64_t size,
                       const std::string& where) {
  const ZipFile file(zip_fopen_index(archive, index, 0));
  if (!file) fail(where, zip_strerror(archive));
  std::string content(size, '\0');
  for (std::size_t at = 0; at < size;) {
    const zip_int64_t got = zip_fread(file.get(), content.data() + at, size - at);
    if (got <= 0) fail(where, got < 0 ? zip_file_strerror(file.get()) : "the archive is cut off");
    at += static_cast<std::size_t>(got);
  }
  return content;
}

}  // namespace

std::string to_npz(std::span<const NpyArray> arrays) {
  const std::string where = "npz";
  zip_error_t error;
  zip_error_init(&error);
  const Source buffer(zip_source_buffer_create(nullptr, 0, 0, &error));
  if (!buffer) fail(where, zip_error_strerror(&error));
  zip_source_keep(buffer.get());  // for the archive, which releases it at its end
  Archive archive(zip_open_from_source(buffer.get(), ZIP_CREATE | ZIP_TRUNCATE, &error));
  if (!archive) fail(where, zip_error_strerror(&error));
  std::vector<std::string> contents;  // must outlive the archive
  contents.reserve(arrays.size());
  for (const NpyArray& array : arrays) {
    if (array.name.find('\0') != std::string::npos)
      fail(where, "the name of a layer holds a NUL character");
    if (std::ranges::any_of(array.name, is_refused_in_zip)) {
      throw ValueError("a NumPy archive cannot have an array called '" + array.name +
                       "', for its control characters; export to json");
    }
    const std::string& content = contents.emplace_back(npy_of(array.values));
    Source source(zip_source_buffer(archive.get(), content.data(), content.size(), 0));
    if (!source) fail(where, zip_strerror(archive.get()));
    const std::string name = array.name + std::string(kExtension);
    const zip_int64_t index =
        zip_file_add(archive.get(), name.c_str(), source.get(), ZIP_FL_ENC_UTF_8);
    if (index < 0) fail(array.name, zip_strerror(archive.get()));
    [[maybe_unused]] zip_source_t* given = source.release();
    constexpr zip_uint16_t kFirstDay = (1 << 5) | 1;  // 1 January 1980
    const auto entry = static_cast<zip_uint64_t>(index);
    zip_set_file_compression(archive.get(), entry, ZIP_CM_STORE, 0);
    zip_file_set_dostime(archive.get(), entry, 0, kFirstDay, 0);
  }
  if (zip_close(archive.get()) != 0) fail(where, zip_strerror(archive.get()));
  [[maybe_unused]] zip_t* closed = archive.release();
  zip_stat_t info;
  if (zip_source_stat(buffer.get(), &info) != 0 || zip_source_open(buffer.get()) != 0) {
    fail(where, "the archive cannot be read back");
  }
  std::string file(info.size, '\0');
  const zip_int64_t got = zip_source_read(buffer.get(), file.data(), info.size);
  zip_source_close(buffer.get());
  if (std::cmp_not_equal(got, info.size)) fail(where, "the archive cannot be read back");
  return file;
}

std::vector<NpyArray> read_npz(const std::string& path) {
  if (FileReader(path).remaining() > kMaxNpzFile) fail(path, "too large for factors");
  int code = 0;
  const Archive archive(zip_open(path.c_str(), ZIP_RDONLY | ZIP_CHECKCONS, &code));
  if (!archive) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string reason = zip_error_strerror(&error);
    zip_error_fini(&error);
    fail(path, reason.c_str());
  }
  std::vector<NpyArray> arrays;
  std::uint64_t total = 0;
  const zip_int64_t count = zip_get_num_entries(archive.get(), 0);
  if (count > kMaxNpzArrays) fail(path, "it holds too many arrays");
  for (zip_int64_t i = 0; i < count; ++i) {
    zip_stat_t info;
    const auto index = static_cast<zip_uint64_t>(i);
    if (zip_stat_index(archive.get(), index, 0, &info) != 0)
      fail(path, zip_strerror(archive.get()));
    const std::string name = (info.valid & ZIP_STAT_NAME) != 0 ? info.name : "";
    const std::string where = path + ": " + name;
    if ((info.valid & ZIP_STAT_SIZE) == 0 || info.size > kMaxNpyArray)
      fail(where, "too large for factors");
    total += info.size;
    if (total > kMaxNpzBytes) {
      fail(where, "too large for factors");
    }
    if (!name.ends_with(kExtension)) continue;
    const std::string content = read_entry(archive.get(), index, info.size, where);
    if (auto values = values_of(content, where)) {
      arrays.push_back({name.substr(0, name.size() - kExtension.size()), std::move(*values)});
    }
  }
  return arrays;
}

}  // namespace amct

// SPDX-License-Identifier: Apache-2.0
// Reads and checks a safetensors file. Every number of the header is checked before it is used: the file may come from anywhere.
#include "safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <pqkv/core/scalar.hpp>

#include "json_file.hpp"
#include "load_error.hpp"

namespace minillama {
namespace {

constexpr std::size_t length_bytes = 8;

std::string printed(std::span<const std::size_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Bytes of one element, for the types that this reader converts.
std::optional<std::size_t> element_bytes(const std::string& type) {
  if (type == "F32") return 4;
  if (type == "F16" || type == "BF16") return 2;
  return std::nullopt;
}

/// Product of the extents, or nothing when it does not fit.
std::optional<std::size_t> element_count(std::span<const std::size_t> shape) {
  std::size_t count = 1;
  for (const std::size_t extent : shape) {
    if (extent != 0 && count > std::numeric_limits<std::size_t>::max() / 8 / extent) return std::nullopt;
    count *= extent;
  }
  return count;
}

/// Converts elements, as unaligned as they may be, and stops at the first NaN or infinity: one whose exponent is all ones, tested on
/// the bits, because a build with -ffast-math may assume that neither exists.
///
/// @returns the index of the first non-finite element, or the count
template <class Stored>
std::size_t convert_finite(std::span<const std::byte> bytes, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<float>(stored);
    if (!pqkv::is_finite(out[i])) return i;
  }
  return out.size();
}

std::vector<std::size_t> unsigned_numbers(const nlohmann::json& entry, const char* key) {
  std::vector<std::size_t> numbers;
  for (const auto& number : entry.at(key)) {
    if (!number.is_number_unsigned()) throw std::invalid_argument(std::string(key) + ": expected whole numbers, none negative");
    numbers.push_back(number.get<std::size_t>());
  }
  return numbers;
}

}  // namespace

mapped_file::mapped_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw load_error(path.string(), std::string("cannot be opened: ") + std::strerror(errno));
  struct stat facts {};
  const bool regular = ::fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_size > 0;
  void* data = regular ? ::mmap(nullptr, static_cast<std::size_t>(facts.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0) : MAP_FAILED;
  ::close(descriptor);
  if (data == MAP_FAILED) throw load_error(path.string(), "is empty, or not a file that can be mapped");
  data_ = static_cast<const std::byte*>(data);
  size_ = static_cast<std::size_t>(facts.st_size);
}

mapped_file::~mapped_file() { ::munmap(const_cast<std::byte*>(data_), size_); }

safetensors_file::safetensors_file(const std::filesystem::path& path) : path_(path), file_(path) {
  const auto bytes = file_.bytes();
  const auto fail = [&](const std::string& key, const std::string& what) { throw load_error(path_, key, what); };
  if (bytes.size() < length_bytes) fail("header", "file is truncated: " + std::to_string(bytes.size()) + " bytes");

  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) header_bytes |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
  if (header_bytes > bytes.size() - length_bytes)
    fail("header", "is longer than the file: " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(bytes.size()));

  const auto* text = reinterpret_cast<const char*>(bytes.data()) + length_bytes;
  const auto header = parse_object(path_, "header", {text, static_cast<std::size_t>(header_bytes)});

  const auto data = bytes.subspan(length_bytes + static_cast<std::size_t>(header_bytes));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    tensor found;
    std::vector<std::size_t> offsets;
    try {
      found.type = entry.at("dtype").get<std::string>();
      found.shape = unsigned_numbers(entry, "shape");
      offsets = unsigned_numbers(entry, "data_offsets");
    } catch (const std::exception& problem) {
      fail(name, std::string("malformed entry: ") + problem.what());
    }
    if (offsets.size() != 2 || offsets[0] > offsets[1]) fail(name, "data_offsets: expected [begin, end], got " + printed(offsets));
    if (offsets[1] > data.size())
      fail(name, "data_offsets: " + printed(offsets) + " lie outside the file's " + std::to_string(data.size()) + " bytes of data");
    found.bytes = data.subspan(offsets[0], offsets[1] - offsets[0]);

    const auto count = element_count(found.shape);
    const auto size = element_bytes(found.type);
    if (!count || (size && *count * *size != found.bytes.size()))
      fail(name, "shape " + printed(found.shape) + " of " + found.type + " does not make " + std::to_string(found.bytes.size()) + " bytes");
    tensors_.emplace(name, std::move(found));
  }
  refuse_overlaps();
}

void safetensors_file::refuse_overlaps() const {
  std::vector<const decltype(tensors_)::value_type*> by_address;
  for (const auto& entry : tensors_)
    if (!entry.second.bytes.empty()) by_address.push_back(&entry);
  std::sort(by_address.begin(), by_address.end(),
            [](const auto* a, const auto* b) { return a->second.bytes.data() < b->second.bytes.data(); });
  for (std::size_t i = 1; i < by_address.size(); ++i) {
    const auto& [name, before] = *by_address[i - 1];
    if (before.bytes.data() + before.bytes.size() > by_address[i]->second.bytes.data())
      throw load_error(path_, by_address[i]->first, "data_offsets: overlap those of " + name);
  }
}

std::vector<std::string> safetensors_file::names() const {
  std::vector<std::string> all;
  for (const auto& entry : tensors_) all.push_back(entry.first);
  return all;
}

void safetensors_file::read(const std::string& name, std::span<const std::size_t> shape, std::span<float> out) const {
  const auto entry = tensors_.find(name);
  if (entry == tensors_.end()) throw load_error(path_, name, "missing tensor");
  const tensor& found = entry->second;
  if (!element_bytes(found.type)) throw load_error(path_, name, "unknown type " + found.type + " (F32, F16 and BF16 can be read)");
  if (!std::equal(shape.begin(), shape.end(), found.shape.begin(), found.shape.end()))
    throw load_error(path_, name, "expected shape " + printed(shape) + ", got " + printed(found.shape));
  if (out.size() * *element_bytes(found.type) != found.bytes.size())
    throw std::invalid_argument("read: out does not have the shape's size");

  const std::size_t finite = found.type == "F32"    ? convert_finite<float>(found.bytes, out)
                             : found.type == "BF16" ? convert_finite<pqkv::bfloat16>(found.bytes, out)
                                                    : convert_finite<pqkv::half>(found.bytes, out);
  if (finite != out.size()) throw load_error(path_, name, "NaN or infinity at element " + std::to_string(finite));
}

}  // namespace minillama

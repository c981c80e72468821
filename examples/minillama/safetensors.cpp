// SPDX-License-Identifier: Apache-2.0
// Reads and checks a safetensors file. Every number of the header is checked before it is used: the file may come from anywhere.
#include "safetensors.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "json_file.hpp"
#include "load_error.hpp"

namespace minillama {
namespace {

constexpr std::size_t length_bytes = 8;
constexpr std::size_t most_header_bytes = std::size_t{16} << 20;  // a tensor takes some 150 bytes, and a Llama has a few thousand

std::string printed(std::span<const std::size_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Bits of one element of every type of the format; of no other.
std::optional<std::size_t> element_bits(const std::string& type) {
  static const std::map<std::string, std::size_t> bits{
      {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
      {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
      {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},    {"I64", 64}, {"U64", 64}};
  const auto found = bits.find(type);
  return found == bits.end() ? std::nullopt : std::optional(found->second);
}

/// Of the types that are read.
std::optional<weight_type> type_named(const std::string& type) {
  if (type == "F32") return weight_type::float32;
  if (type == "F16") return weight_type::float16;
  if (type == "BF16") return weight_type::bfloat16;
  return std::nullopt;
}

/// Product of the extents, or nothing when it does not fit.
std::optional<std::size_t> element_count(std::span<const std::size_t> shape) {
  std::size_t count = 1;
  for (const std::size_t extent : shape) {
    if (extent != 0 && count > std::numeric_limits<std::size_t>::max() / 64 / extent) return std::nullopt;
    count *= extent;
  }
  return count;
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

safetensors_file::safetensors_file(const std::filesystem::path& path) : path_(path), file_(path) {
  const auto bytes = file_.bytes();
  const auto fail = [&](const std::string& what) { throw load_error(path_, "header", what); };
  if (bytes.size() < length_bytes) fail("file is truncated: " + std::to_string(bytes.size()) + " bytes");

  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) header_bytes |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
  if (header_bytes > bytes.size() - length_bytes)
    fail("is longer than the file: " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(bytes.size()));
  if (header_bytes > most_header_bytes)
    fail("has " + std::to_string(header_bytes) + " bytes; expected at most " + std::to_string(most_header_bytes));

  const auto* text = reinterpret_cast<const char*>(bytes.data()) + length_bytes;
  if (header_bytes == 0 || *text != '{') fail("is not a JSON object");  // nothing may stand before it
  const auto header = parse_object(path_, "header", {text, static_cast<std::size_t>(header_bytes)});

  const auto data = bytes.subspan(length_bytes + static_cast<std::size_t>(header_bytes));
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      tensors_.emplace(name, entry_of(name, entry, data));
      continue;
    }
    const bool texts = entry.is_object() && std::all_of(entry.begin(), entry.end(), [](const auto& value) { return value.is_string(); });
    if (!texts) throw load_error(path_, name, "expected an object of texts");
  }
  refuse_gaps(data);
}

safetensors_file::tensor safetensors_file::entry_of(const std::string& name, const nlohmann::json& entry,
                                                    std::span<const std::byte> data) const {
  const auto fail = [&](const std::string& what) { throw load_error(path_, name, what); };
  tensor made;
  std::vector<std::size_t> offsets;
  try {
    made.type = entry.at("dtype").get<std::string>();
    made.shape = unsigned_numbers(entry, "shape");
    offsets = unsigned_numbers(entry, "data_offsets");
  } catch (const std::exception& problem) {
    fail(std::string("malformed entry: ") + problem.what());
  }
  if (offsets.size() != 2 || offsets[0] > offsets[1]) fail("data_offsets: expected [begin, end], got " + printed(offsets));
  if (offsets[1] > data.size())
    fail("data_offsets: " + printed(offsets) + " lie outside the file's " + std::to_string(data.size()) + " bytes of data");
  made.bytes = data.subspan(offsets[0], offsets[1] - offsets[0]);

  const auto bits = element_bits(made.type);
  if (!bits) fail("unknown type " + made.type);
  const auto count = element_count(made.shape);
  if (!count || *count * *bits != made.bytes.size() * 8)
    fail("shape " + printed(made.shape) + " of " + made.type + " does not make " + std::to_string(made.bytes.size()) + " bytes");
  return made;
}

/// Tensors lie one after the other, from the header to the end of the file.
void safetensors_file::refuse_gaps(std::span<const std::byte> data) const {
  std::vector<const decltype(tensors_)::value_type*> by_address;
  for (const auto& entry : tensors_) by_address.push_back(&entry);
  const auto begin = [](const auto* entry) { return entry->second.bytes.data(); };
  const auto end = [](const auto* entry) { return entry->second.bytes.data() + entry->second.bytes.size(); };
  std::sort(by_address.begin(), by_address.end(),
            [&](const auto* a, const auto* b) { return std::pair(begin(a), end(a)) < std::pair(begin(b), end(b)); });
  const std::byte* reached = data.data();
  for (std::size_t i = 0; i < by_address.size(); ++i) {
    const auto* entry = by_address[i];
    if (begin(entry) < reached) throw load_error(path_, entry->first, "data_offsets: overlap those of " + by_address[i - 1]->first);
    if (begin(entry) > reached)
      throw load_error(path_, entry->first,
                       "data_offsets: " + std::to_string(begin(entry) - reached) + " bytes before them belong to no tensor");
    reached = end(entry);
  }
  if (const auto rest = data.data() + data.size() - reached; rest != 0)
    throw load_error(path_, "data", std::to_string(rest) + " bytes after the last tensor belong to no tensor");
}

std::vector<std::string> safetensors_file::names() const {
  std::vector<std::string> all;
  for (const auto& entry : tensors_) all.push_back(entry.first);
  return all;
}

bool safetensors_file::same(const std::string& name, const safetensors_file& other, const std::string& other_name) const {
  const tensor &one = tensors_.at(name), &two = other.tensors_.at(other_name);
  if (one.type != two.type || one.shape != two.shape) return false;
  constexpr std::size_t compared_at_once = std::size_t{1} << 20;
  for (std::size_t begin = 0; begin < one.bytes.size(); begin += compared_at_once) {
    const std::size_t count = std::min(compared_at_once, one.bytes.size() - begin);
    const auto here = one.bytes.subspan(begin, count), there = two.bytes.subspan(begin, count);
    const bool equal = std::equal(here.begin(), here.end(), there.begin());
    file_.forget(here);
    other.file_.forget(there);
    if (!equal) return false;
  }
  return true;
}

const safetensors_file::tensor& safetensors_file::found(const std::string& name) const {
  const auto entry = tensors_.find(name);
  if (entry == tensors_.end()) throw load_error(path_, name, "missing tensor");
  const tensor& there = entry->second;
  if (!type_named(there.type)) throw load_error(path_, name, "type " + there.type + " is not read (only F32, F16 and BF16)");
  return there;
}

const safetensors_file::tensor& safetensors_file::found(const std::string& name, std::span<const std::size_t> shape) const {
  const tensor& there = found(name);
  if (!std::equal(shape.begin(), shape.end(), there.shape.begin(), there.shape.end()))
    throw load_error(path_, name, "expected shape " + printed(shape) + ", got " + printed(there.shape));
  return there;
}

void safetensors_file::require(const std::string& name, std::span<const std::size_t> shape) const { found(name, shape); }

weight_type safetensors_file::type_of(const std::string& name) const { return *type_named(found(name).type); }

void safetensors_file::read_rows(const std::string& name, std::span<const std::size_t> shape, const row_taker& take) const {
  const tensor& from = found(name, shape);
  const auto wrong = hand_over_rows(file_, from.bytes, *type_named(from.type), shape.back(), take);
  if (wrong) throw load_error(path_, name, "NaN or infinity at element " + std::to_string(*wrong));
}

}  // namespace minillama

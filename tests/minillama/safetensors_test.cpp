// SPDX-License-Identifier: Apache-2.0
// The safetensors reader: values of every type, and one line that names file and tensor for every way a file can be wrong.
#include "safetensors.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>

#include "load_error.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;

namespace {

const tensors two_tensors{{"a", {{2, 3}, {1.0f, -2.0f, 0.5f, 3.0f, 0.0f, -0.25f}}}, {"b", {{1}, {7.0f}}}};
constexpr std::array<std::size_t, 2> shape_a{2, 3};

void read(const minillama::safetensors_file& file, const std::string& name, std::span<const std::size_t> shape, std::span<float> out) {
  const minillama::weight_type type = file.type_of(name);
  file.read_rows(name, shape, [&](std::size_t row, std::span<const std::byte> elements) {
    minillama::to_floats(type, elements, out.subspan(row * shape.back(), shape.back()));
  });
}

/// Text of the error that reading tensor `name` of the file ends with; empty when there is none.
std::string problem(const std::filesystem::path& path, const std::string& name = "a", std::span<const std::size_t> shape = shape_a) {
  try {
    const minillama::safetensors_file file(path);
    std::size_t count = 1;
    for (const std::size_t extent : shape) count *= extent;
    std::vector<float> out(count);
    read(file, name, shape, out);
  } catch (const minillama::load_error& error) {
    const std::string text = error.what();
    CHECK_MESSAGE(text.rfind(path.string() + ": ", 0) == 0, text);
    CHECK_MESSAGE(text.find('\n') == std::string::npos, text);
    return text;
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("f32, f16 and bf16 tensors are read as floats") {
  const temporary_directory folder;
  for (const std::string type : {"F32", "F16", "BF16"}) {
    CAPTURE(type);
    const auto path = folder.path() / (type + ".safetensors");
    parts_of(two_tensors, type).write(path);
    const minillama::safetensors_file file(path);
    CHECK(file.contains("b"));
    CHECK_FALSE(file.contains("__metadata__"));
    std::array<float, 6> out{};
    read(file, "a", shape_a, out);
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == two_tensors.at("a").values[i]);
  }
}

TEST_CASE("data that starts at an odd address is read") {
  const temporary_directory folder;
  for (const char* blanks : {"", " ", "  ", "   "}) {  // one of them makes it odd
    auto parts = parts_of(two_tensors, "F32");
    parts.padding = blanks;
    parts.write(folder.path() / "odd");
    CHECK(problem(folder.path() / "odd") == "");
  }
}

TEST_CASE("a file that is not there, empty, or shorter than its own header is refused") {
  const temporary_directory folder;
  const auto path = folder.path() / "f";
  CHECK(contains(problem(path), "cannot be opened"));
  CHECK(contains(problem(folder.path()), "not a file"));
  write_text(path, "");
  CHECK(contains(problem(path), "empty"));
  write_text(path, "\x10\0\0");
  CHECK(contains(problem(path), "truncated"));
  write_text(path, std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10));
  CHECK(contains(problem(path), "header: is longer than the file"));
  write_text(path, std::string("\x03\0\0\0\0\0\0\0{}", 10));
  CHECK(contains(problem(path), "header: is longer than the file"));
  write_text(path, std::string("\x02\0\0\0\0\0\0\0[]", 10));
  CHECK(contains(problem(path), "not a JSON object"));
  write_text(path, std::string("\x02\0\0\0\0\0\0\0{,", 10));
  CHECK(contains(problem(path), "not a JSON object"));
}

TEST_CASE("a file cut anywhere gives an error, never values") {
  const temporary_directory folder;
  const auto path = folder.path() / "cut";
  parts_of(two_tensors, "F32").write(path);
  for (auto size = std::filesystem::file_size(path); size-- > 0;) {
    std::filesystem::resize_file(path, size);
    CHECK(problem(path, "b", std::array<std::size_t, 1>{1}) != "");
  }
}

TEST_CASE("entries that contradict the file or themselves are refused by name") {
  const temporary_directory folder;
  const auto path = folder.path() / "f";
  const auto spoiled = [&](const char* key, const nlohmann::json& value) {
    auto parts = parts_of(two_tensors, "F32");
    parts.header["a"][key] = value;
    parts.write(path);
    const std::string text = problem(path);
    CHECK_MESSAGE(contains(text, ": a: "), text);
    return text;
  };
  CHECK(contains(spoiled("data_offsets", {0, 1000}), "outside the file"));
  CHECK(contains(spoiled("data_offsets", {std::uint64_t{1} << 63, (std::uint64_t{1} << 63) + 24}), "outside the file"));
  CHECK(contains(spoiled("data_offsets", {24, 0}), "data_offsets"));
  CHECK(contains(spoiled("data_offsets", {0}), "data_offsets"));
  CHECK(contains(spoiled("data_offsets", {-1, 24}), "data_offsets"));
  CHECK(contains(spoiled("data_offsets", "x"), "data_offsets"));
  CHECK(contains(spoiled("shape", {2, 4}), "does not make 24 bytes"));
  CHECK(contains(spoiled("shape", {std::uint64_t{1} << 40, std::uint64_t{1} << 40}), "does not make"));
  CHECK(contains(spoiled("shape", {2, -3}), "shape"));
  CHECK(contains(spoiled("shape", {1.5}), "shape"));
  CHECK(contains(spoiled("shape", {3, 2}), "expected shape [2, 3], got [3, 2]"));
  CHECK(contains(spoiled("dtype", "F16"), "does not make 24 bytes"));
  CHECK(contains(spoiled("dtype", "I64"), "does not make 24 bytes"));
  CHECK(contains(spoiled("dtype", "I32"), "type I32 is not read (only F32, F16 and BF16)"));
  CHECK(contains(spoiled("dtype", "F33"), "unknown type F33"));
  CHECK(contains(spoiled("dtype", 5), "malformed"));

  auto parts = parts_of(two_tensors, "F32");
  parts.header["a"].erase("dtype");
  parts.write(path);
  CHECK(contains(problem(path), ": a: malformed"));
  parts.header["a"] = 5;
  parts.write(path);
  CHECK(contains(problem(path), ": a: malformed"));
  parts.header["c"] = parts_of(two_tensors, "F32").header["a"];
  parts.header.erase("a");
  parts.write(path);
  CHECK(contains(problem(path), ": a: missing tensor"));
}

TEST_CASE("a name given twice is refused, not read as the last of both") {
  const temporary_directory folder;
  const auto path = folder.path() / "f";
  const std::string entry = R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})";
  for (const std::string& second : {entry, std::string(R"("a":null)")}) {
    const std::string header = "{" + entry + "," + second + "}";
    write_text(path, static_cast<char>(header.size()) + std::string(7, '\0') + header + std::string(24, '\0'));
    CHECK(contains(problem(path), ": a: is given twice"));
  }
  const std::string named = R"({"a\nb":null,"a\nb":null})";
  write_text(path, static_cast<char>(named.size()) + std::string(7, '\0') + named);
  CHECK(contains(problem(path), ": a\\x0ab: is given twice"));
  const std::string inner = R"({"a":{"dtype":"F32","dtype":"F16","shape":[2,3],"data_offsets":[0,24]}})";
  write_text(path, static_cast<char>(inner.size()) + std::string(7, '\0') + inner + std::string(24, '\0'));
  CHECK(contains(problem(path), ": dtype: is given twice"));
}

TEST_CASE("tensors that share bytes are refused; empty ones share none") {
  const temporary_directory folder;
  const auto path = folder.path() / "f";
  auto parts = parts_of(two_tensors, "F32");
  for (const std::size_t begin : {std::size_t{0}, std::size_t{4}, std::size_t{20}}) {
    parts.header["b"]["data_offsets"] = {begin, begin + 4};
    parts.write(path);
    const std::string text = problem(path);
    CHECK_MESSAGE((contains(text, ": b: data_offsets: overlap those of a") || contains(text, ": a: data_offsets: overlap those of b")),
                  text);
  }
  parts.header["b"] = {{"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {8, 8}}};
  parts.data.resize(24);
  parts.write(path);
  CHECK(contains(problem(path), "overlap"));
  for (const std::size_t place : {std::size_t{0}, std::size_t{24}}) {
    parts.header["b"]["data_offsets"] = {place, place};
    parts.write(path);
    CHECK(problem(path) == "");
  }
}

TEST_CASE("bytes of no tensor, and anything but blanks around the header, are refused as the reference does") {
  const temporary_directory folder;
  const auto path = folder.path() / "f";
  const auto written = [&](const safetensors_parts& parts) {
    parts.write(path);
    return problem(path);
  };
  const safetensors_parts good = parts_of(two_tensors, "F32");
  auto parts = good;
  parts.data += "xyz";
  CHECK(contains(written(parts), ": data: 3 bytes after the last tensor belong to no tensor"));
  parts.data.insert(24, "wxyz");
  parts.header["b"]["data_offsets"] = {28, 32};
  CHECK(contains(written(parts), ": b: data_offsets: 4 bytes before them belong to no tensor"));
  parts = good;
  parts.header.erase("a");
  CHECK(contains(written(parts), ": b: data_offsets: 24 bytes before them belong to no tensor"));
  for (const std::string& bytes : {std::string(1, '\0'), std::string("  \0", 3), std::string("x")}) {
    parts = good;
    parts.padding = bytes;
    CHECK(contains(written(parts), ": header: is not a JSON object"));
  }
  parts.padding = "  \n ";
  CHECK(written(parts) == "");
  parts.header["__metadata__"] = {{"format", 3}};
  CHECK(contains(written(parts), ": __metadata__: expected an object of texts"));
  parts.header["__metadata__"] = {{"format", "pt"}};
  parts.padding = std::string(std::size_t{17} << 20, ' ');
  CHECK(contains(written(parts), ": header: has "));
}

TEST_CASE("NaN and infinity are found in every type, at any place") {
  const temporary_directory folder;
  const auto path = folder.path() / "f";
  for (const std::string type : {"F32", "F16", "BF16"})
    for (const float poison :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
      for (std::size_t place = 0; place < 6; ++place) {
        tensors spoiled = two_tensors;
        spoiled["a"].values[place] = poison;
        parts_of(spoiled, type).write(path);
        CHECK(contains(problem(path), ": a: NaN or infinity at element " + std::to_string(place)));
        CHECK(problem(path, "b", std::array<std::size_t, 1>{1}) == "");
      }
}

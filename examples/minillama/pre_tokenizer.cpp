// SPDX-License-Identifier: Apache-2.0
// Each step of a sequence takes the pieces that the step before it left.
#include "pre_tokenizer.hpp"

#include <array>
#include <cctype>
#include <memory>
#include <unordered_map>

#include "byte_pairs.hpp"
#include "load_error.hpp"
#include "regular_expression.hpp"
#include "unicode_text.hpp"

namespace minillama {
namespace {

using nlohmann::json;
using std::filesystem::path;

/// What GPT-2 splits by, and ByteLevel where it is not told otherwise.
constexpr const char* gpt2_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Pieces between matches, and matches, in order.
std::vector<std::string> isolate(const regular_expression& pattern, const std::string& text) {
  std::vector<std::string> pieces;
  std::size_t done = 0;
  const auto add = [&](std::size_t end) {
    if (end > done) pieces.push_back(text.substr(done, end - done));
    done = end;
  };
  pattern.each_match(text, [&](std::size_t begin, std::size_t end) {
    add(begin);
    add(end);
  });
  add(text.size());
  return pieces;
}

std::shared_ptr<regular_expression> compile(const path& file, const std::string& key, const std::string& pattern) {
  try {
    return std::make_shared<regular_expression>(pattern);
  } catch (const std::invalid_argument& problem) {
    throw load_error(file, key, problem.what());
  }
}

/// The text as a regular expression that matches it alone.
std::string quoted(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) out += '\\';
    out += c;
  }
  return out;
}

/// {"Regex": "..."} or {"String": "..."}
std::string pattern_of(const json_reader& at) {
  const json_reader inner = at.inside("pattern");
  if (inner.find("Regex")) return inner.text("Regex");
  return quoted(inner.text("String"));
}

/// How long all steps together may make a text. A space becomes a mark of 3 bytes, a byte a letter of 2: twice that is far. Without a limit
/// a file of sixty steps that double a text would take all memory.
std::size_t most_bytes_of(std::size_t given) { return 12 * given + 4096; }

[[noreturn]] void refuse_growth(const path& file, const char* key, std::size_t given) {
  throw load_error(file, key, "makes of a text of " + std::to_string(given) + " bytes more than " + std::to_string(most_bytes_of(given)));
}

std::array<std::string, 256> all_byte_letters() {
  std::array<std::string, 256> letters;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const unsigned code = printable ? byte : next++;
    if (code < 0x80)
      letters[byte] = static_cast<char>(code);
    else
      letters[byte] = {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
  }
  return letters;
}

const std::array<std::string, 256>& byte_letters() {
  static const std::array<std::string, 256> letters = all_byte_letters();
  return letters;
}

}  // namespace

const std::string& byte_letter(unsigned char byte) { return byte_letters()[byte]; }

std::string bytes_of_letters(const std::string& letters) {
  static const std::unordered_map<std::string, char> bytes = [] {
    std::unordered_map<std::string, char> known;
    for (unsigned byte = 0; byte < 256; ++byte) known.emplace(byte_letters()[byte], static_cast<char>(byte));
    return known;
  }();
  std::string out;
  for (std::size_t at = 0; at < letters.size();) {
    const std::size_t length = character_bytes(std::string_view(letters).substr(at));
    const auto found = bytes.find(letters.substr(at, length));
    if (found == bytes.end()) return letters;
    out += found->second;
    at += length;
  }
  return out;
}

normalizer::normalizer(const path& file, const json& described) : file_(file) {
  if (described.is_null()) return;
  const auto add = [&](const json_reader& one) {
    const std::string type = one.text("type");
    if (type == "Prepend") {
      steps_.push_back({"", one.text("prepend")});
    } else if (type == "Replace") {
      const json_reader pattern = one.inside("pattern");
      steps_.push_back({pattern.text("String"), one.text("content")});
      if (steps_.back().from.empty()) pattern.fail("String", "is empty");
    } else {
      one.fail("type", "unsupported: " + type + " (only Prepend, Replace and Sequence)");
    }
  };
  const json_reader outer(file, described, "normalizer.");
  if (outer.text("type") != "Sequence")
    add(outer);
  else
    for (const json_reader& one : outer.each("normalizers")) add(one);
}

std::string normalizer::operator()(std::string text, piece_place place) const {
  if (text.empty()) return text;
  const std::size_t given = text.size(), most = most_bytes_of(given);
  for (const step& one : steps_) {
    if (!one.from.empty())
      text = replaced(text, one.from, one.to, most);
    else if (place != piece_place::continued)
      text.insert(0, one.to);
    if (text.size() > most) refuse_growth(file_, "normalizer", given);
  }
  return text;
}

pre_tokenizer::pre_tokenizer(const path& file, const json& described) : file_(file) {
  if (described.is_null()) return;
  const json_reader outer(file, described, "pre_tokenizer.");
  if (outer.text("type") != "Sequence")
    add(outer);
  else
    for (const json_reader& one : outer.each("pretokenizers")) add(one);
}

void pre_tokenizer::add(const json_reader& at) {
  const std::string type = at.text("type");
  if (type == "Split")
    add_split(at);
  else if (type == "Digits")
    add_matches(at, "individual_digits", at.flag_or("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
  else if (type == "ByteLevel")
    add_byte_level(at);
  else if (type == "Metaspace")
    add_metaspace(at);
  else
    at.fail("type", "unsupported: " + type + " (only Split, Digits, ByteLevel, Metaspace and Sequence)");
}

void pre_tokenizer::add_matches(const json_reader& at, const std::string& key, const std::string& pattern) {
  steps_.push_back([expression = compile(at.file(), at.path_of(key), pattern)](const std::string& piece, piece_place, pieces& out) {
    for (std::string& part : isolate(*expression, piece)) out.push_back(std::move(part));
  });
}

void pre_tokenizer::add_split(const json_reader& at) {
  at.require_text("behavior", "Isolated");
  if (at.flag_or("invert", false)) at.fail("invert", "unsupported: true (only false)");
  add_matches(at, "pattern", pattern_of(at));
}

void pre_tokenizer::add_byte_level(const json_reader& at) {
  if (at.flag_or("add_prefix_space", true))
    steps_.push_back([](const std::string& piece, piece_place place, pieces& out) {
      out.push_back(place != piece_place::continued && piece.front() != ' ' ? " " + piece : piece);
    });
  if (at.flag_or("use_regex", true)) add_matches(at, "use_regex", gpt2_pattern);
  steps_.push_back([](const std::string& piece, piece_place, pieces& out) {
    std::string letters;
    for (const char c : piece) letters += byte_letter(static_cast<unsigned char>(c));
    out.push_back(std::move(letters));
  });
}

void pre_tokenizer::add_metaspace(const json_reader& at) {
  const std::string mark = at.text("replacement");
  if (mark.empty()) at.fail("replacement", "is empty");
  const std::string otherwise = at.flag_or("add_prefix_space", true) ? "always" : "never";  // as older files say it
  const std::string scheme = at.find("prepend_scheme") ? at.text("prepend_scheme") : otherwise;
  if (scheme != "always" && scheme != "first" && scheme != "never")
    at.fail("prepend_scheme", "unsupported: " + scheme + " (only always, first and never)");
  steps_.push_back([mark, scheme](const std::string& piece, piece_place place, pieces& out) {
    std::string marked = replaced(piece, " ", mark, most_bytes_of(piece.size()));
    const bool prepends = place == piece_place::start ? scheme != "never" : place == piece_place::later && scheme == "always";
    if (prepends && !marked.starts_with(mark)) marked.insert(0, mark);
    out.push_back(std::move(marked));
  });
  if (!at.flag_or("split", true)) return;
  steps_.push_back([mark](const std::string& piece, piece_place, pieces& out) {  // each mark begins a piece
    std::size_t begin = 0;
    for (auto next = piece.find(mark, 1); next != piece.npos; next = piece.find(mark, next + mark.size())) {
      out.push_back(piece.substr(begin, next - begin));
      begin = next;
    }
    out.push_back(piece.substr(begin));
  });
}

std::vector<std::string> pre_tokenizer::operator()(std::string text, piece_place place) const {
  const std::size_t given = text.size();
  pieces now;
  if (!text.empty()) now.push_back(std::move(text));
  for (const step& one : steps_) {
    pieces next;
    for (std::size_t i = 0; i < now.size(); ++i) one(now[i], i == 0 ? place : piece_place::later, next);
    now = std::move(next);
    std::size_t bytes = 0;
    for (const std::string& piece : now) bytes += piece.size();
    if (bytes > most_bytes_of(given)) refuse_growth(file_, "pre_tokenizer", given);
  }
  return now;
}

}  // namespace minillama

// SPDX-License-Identifier: Apache-2.0
// Keys and values of several kinds, because a model may copy one kind and fail on another.
#include "questions.hpp"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "command_line.hpp"
#include "prose.hpp"

namespace minillama {
namespace {

constexpr std::size_t bytes_per_needle = 512;
constexpr std::size_t list_percent = 30;

constexpr const char* words[] = {
    "amber",  "anchor",  "arrow",  "autumn", "badger",  "basket", "beacon",  "birch",  "bridge", "canyon", "cedar",  "cinder",  "clover",
    "cobalt", "copper",  "coral",  "cotton", "crystal", "dagger", "desert",  "dragon", "eagle",  "ember",  "falcon", "feather", "forest",
    "garnet", "glacier", "hammer", "harbor", "hazel",   "helmet", "indigo",  "island", "ivory",  "jasper", "kettle", "lantern", "lemon",
    "marble", "meadow",  "mirror", "nectar", "nickel",  "ocean",  "olive",   "orchid", "pebble", "pepper", "pillar", "planet",  "prairie",
    "quartz", "rabbit",  "raven",  "ribbon", "river",   "saddle", "saffron", "silver", "timber", "tundra", "velvet", "willow"};

constexpr std::size_t most_numbers = std::size(words) * std::size(words) / 2;  // half of the pairs: the others are drawn in no time

std::string hex_digits(random_source& random) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += "0123456789abcdef"[random.below(16)];
  return text;
}

std::string random_key(random_source& random) {
  switch (random.below(3)) {
    case 0:
      return std::string(random.pick(words)) + " " + random.pick(words);
    case 1:
      return hex_digits(random);
    default:
      return std::string(random.pick(words)) + "-" + std::to_string(random.below(1000));
  }
}

std::string random_value(random_source& random) {
  switch (random.below(3)) {
    case 0: {
      std::string digits(1, "123456789"[random.below(9)]);
      for (std::size_t left = 3 + random.below(4); left > 0; --left) digits += "0123456789"[random.below(10)];
      return digits;
    }
    case 1:
      return hex_digits(random);
    default:
      return random.pick(words);
  }
}

std::string needle(const question& fact, random_source& random) {
  switch (random.below(4)) {
    case 0:
      return "\nThe code of " + fact.key + " is " + fact.value + ".\n";
    case 1:
      return "\nNote: " + fact.key + " has the code " + fact.value + ".\n";
    case 2:
      return "\nRemember that the code of " + fact.key + " is " + fact.value + ".\n";
    default:
      return "\n" + fact.key + ": " + fact.value + "\n";
  }
}

std::string seven_digits(random_source& random) {
  std::string digits(1, "123456789"[random.below(9)]);
  while (digits.size() < 7) digits += "0123456789"[random.below(10)];
  return digits;
}

/// Facts with keys that are all different.
class fact_source {
 public:
  explicit fact_source(random_source& random) : random_(random) {}

  question next(context_kind kind) {
    const bool numbers = kind == context_kind::numbers;
    const auto draw = [&] { return numbers ? std::string(random_.pick(words)) + " " + random_.pick(words) : random_key(random_); };
    std::string key = draw();
    while (!used_.insert(key).second) key = draw();
    return {key, numbers ? seven_digits(random_) : random_value(random_)};
  }

 private:
  random_source& random_;
  std::set<std::string> used_;
};

/// A span of the text from a random offset.
std::string running_text(const std::string& text, std::size_t length, random_source& random) {
  if (text.size() < length)
    throw std::invalid_argument("--text: " + std::to_string(text.size()) + " bytes of text do not fill a context of " +
                                std::to_string(length));
  return text.substr(random.below(text.size() - length + 1), length);
}

/// The next place where a sentence or a line has ended; the text's end where none does.
std::size_t behind_sentence(const std::string& text, std::size_t at) {
  while (at < text.size() && !(at > 0 && (text[at - 1] == '\n' || (text[at - 1] == ' ' && at > 1 && text[at - 2] == '.')))) ++at;
  return at;
}

/// Inserts each piece at a random place of the text; the places keep the pieces' order.
std::string splice(const std::string& text, const std::vector<std::string>& pieces, context_kind kind, random_source& random) {
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    places.push_back(random.below(text.size() + 1));
    if (kind == context_kind::numbers) places.back() = behind_sentence(text, places.back());
  }
  std::sort(places.begin(), places.end());
  std::string out;
  std::size_t done = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    out += text.substr(done, places[i] - done) + pieces[i];
    done = places[i];
  }
  return out + text.substr(done);
}

/// The file itself, or a folder's regular files in sorted order.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& path) {
  std::error_code problem;
  if (!std::filesystem::is_directory(path, problem)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path, problem))
    if (entry.is_regular_file() && !entry.is_symlink()) files.push_back(entry.path());
  if (problem) throw load_error(path.string(), "cannot be read as a folder: " + problem.message());
  if (files.empty()) throw load_error(path.string(), "no files in this folder");
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

const char* name_of(context_kind kind) {
  return kind == context_kind::needles ? "needles" : kind == context_kind::list ? "list" : "numbers";
}

question_context make_context(context_kind kind, const std::string& text, std::size_t length, std::size_t questions,
                              random_source& random) {
  question_context context{kind, {}, {}};
  fact_source facts(random);
  std::vector<std::string> pieces;
  std::size_t piece_bytes = 0;
  if (kind == context_kind::numbers) {
    if (questions > most_numbers)
      throw std::invalid_argument("--questions: " + std::to_string(questions) + " about one context; there are keys for " +
                                  std::to_string(most_numbers));
    for (std::size_t left = questions; left > 0; --left) {
      context.questions.push_back(facts.next(kind));
      pieces.push_back("The magic number of the " + context.questions.back().key + " is " + context.questions.back().value + ".\n");
      piece_bytes += pieces.back().size();
    }
  } else if (kind == context_kind::needles) {
    for (std::size_t left = std::max(questions, length / bytes_per_needle); left > 0; --left) {
      context.questions.push_back(facts.next(kind));
      pieces.push_back(needle(context.questions.back(), random));
      piece_bytes += pieces.back().size();
    }
  } else {
    std::string list = "\n";
    while (list.size() < length * list_percent / 100 || context.questions.size() < questions) {
      const question fact = facts.next(kind);
      list += "\"" + fact.key + "\": \"" + fact.value + "\",\n";
      context.questions.push_back(fact);
    }
    pieces.push_back(list);
    piece_bytes = list.size();
  }
  if (piece_bytes > length)
    throw std::invalid_argument("--length: " + std::to_string(length) + " bytes do not hold the facts of " + std::to_string(questions) +
                                " questions");
  context.text = splice(running_text(text, length - piece_bytes, random), pieces, kind, random);
  random.shuffle(context.questions);
  context.questions.resize(questions);
  return context;
}

std::string load_text(const std::vector<std::filesystem::path>& files_and_folders) {
  if (files_and_folders.empty()) return prose();
  std::string text;
  for (const auto& path : files_and_folders)
    for (const auto& file : files_of(path))
      for (const char c : read_file(file))
        if ((c >= ' ' && c <= '~') || c == '\n' || c == '\t') text += c;
  return text;
}

}  // namespace minillama

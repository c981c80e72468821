// SPDX-License-Identifier: Apache-2.0
// Answers about numbers in a long text, and perplexity, by policy. A prompt is read once, densely; every policy continues from its end.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <random>

#include "measurements.hpp"

namespace llama_example {
namespace {
constexpr std::size_t answer_tokens = 20;

/// Who answers: llama.cpp, or a variant of the engine's.
struct contestant {
  std::string name;
  std::optional<std::size_t> variant;
};

struct needle {
  std::string place, number;
  std::string fact() const { return "The access code of " + place + " is " + number + "."; }
};

const char* const places[] = {"Arnholm", "Bexley", "Cordoba", "Dunmore", "Elmira", "Fargo",  "Ghent", "Hobart", "Ithaca",
                              "Jaipur",  "Kandy",  "Leipzig", "Modena",  "Nantes", "Orkney", "Pemba", "Quito",  "Riga",
                              "Salem",   "Tartu",  "Utrecht", "Varna",   "Whitby", "Xalapa", "Yukon", "Zadar"};

std::vector<needle> needles_of(std::size_t count, std::size_t seed) {
  std::mt19937 random(static_cast<std::mt19937::result_type>(seed));
  std::uniform_int_distribution<int> digits(1000000, 9999999);
  std::vector<needle> all;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t round = i / std::size(places);
    std::string place = places[i % std::size(places)];
    if (round != 0) place.append(" ").append(std::to_string(round + 1));
    all.push_back({place, std::to_string(digits(random))});
  }
  return all;
}

/// The text's first lines with a fact after a line at each of as many depths; `bytes` of the text itself.
std::string with_facts(const std::string& text, std::size_t bytes, const std::vector<needle>& facts) {
  std::string all;
  std::size_t done = 0;
  for (std::size_t i = 0; i < facts.size(); ++i) {
    const std::size_t wanted = bytes * (2 * i + 1) / (2 * facts.size());
    const std::size_t at = std::min(text.find('\n', std::max(wanted, done)), bytes);
    all.append(text, done, at - done).append("\n").append(facts[i].fact()).append("\n");
    done = at;
  }
  return all + text.substr(done, bytes - done);
}

struct prompt_type {
  std::vector<llama_token> read, after;  // the prompt, and the text's own continuation
  std::vector<std::vector<llama_token>> questions;
};

/// A prompt of `length` tokens at most, with the facts in it; as a user's message where the model has a template for it.
prompt_type prompt_of(const model& file, const options& o, const std::string& text, std::size_t length, const std::vector<needle>& facts) {
  const std::size_t in_all = file.tokens_of(text, true).size();
  if (in_all < length + o.steps + 64)
    throw usage_error("--quality " + std::to_string(length) + " needs a text of more tokens than the " + std::to_string(in_all) +
                      " of the one given with -f");
  prompt_type prompt;
  const auto chat = [&](const std::string& message) { return o.raw ? std::string() : file.chat_text({{"user", message}}, true); };
  for (std::size_t bytes = text.size() * length / in_all;; bytes -= std::min(bytes, text.size() / in_all * 32)) {
    if (bytes == 0) throw usage_error("--needles: that many facts do not fit into " + std::to_string(length) + " tokens");
    const std::string told = with_facts(text, bytes, facts), asked = chat(told);
    const std::size_t cut = asked.empty() ? told.size() : asked.find(told) + told.size();
    prompt.read = file.tokens_of(asked.empty() ? told : asked.substr(0, cut), true);
    if (prompt.read.size() > length) continue;
    prompt.after = file.tokens_of(text.substr(bytes, std::min(text.size() - bytes, 16 * (o.steps + 1))), false);
    prompt.after.resize(std::min(prompt.after.size(), o.steps + 1));
    for (const needle& each : facts) {
      const std::string question = "\n\nWhat is the access code of " + each.place + "? Answer with the number alone.";
      const std::string tail = asked.empty() ? "\n\nThe access code of " + each.place + " is" : chat(told + question).substr(cut);
      prompt.questions.push_back(file.tokens_of(tail, false));
    }
    return prompt;
  }
}

/// What the model says to a question, its digits alone.
std::string digits_of_answer(const model& file, engine& e, std::span<const llama_token> question) {
  if (!e.read(question)) throw stopped{};
  std::string digits;
  for (std::size_t i = 0; i < answer_tokens; ++i) {
    const llama_token next = e.best_token();
    if (file.ends_answer(next)) break;
    for (const char letter : file.text_of(next))
      if (letter >= '0' && letter <= '9') digits += letter;
    if (!e.read(next)) throw stopped{};
  }
  return digits;
}

/// Perplexity of all tokens but the first, each after those before it.
double perplexity(engine& e, std::span<const llama_token> tokens) {
  double loss = 0;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    if (!e.read(tokens[i])) throw stopped{};
    const auto logits = e.logits();
    const double most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
    loss += most + std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(tokens[i + 1])]);
  }
  return std::exp(loss / static_cast<double>(tokens.size() - 1));
}

void measure(const model& file, engine& e, const prompt_type& prompt, const std::vector<needle>& facts,
             const std::vector<contestant>& contestants) {
  e.answer_by({});
  if (!e.read(prompt.read)) throw stopped{};
  const engine::mark_type end = e.mark();
  std::printf("%zu tokens, %zu questions\n%-24s %9s %18s %12s\n", prompt.read.size(), facts.size(), "", "right", "of dense's right",
              "perplexity");
  std::vector<bool> dense(facts.size());
  for (const contestant& who : contestants) {
    e.answer_by(who.variant);
    std::size_t right = 0, kept = 0;
    for (std::size_t i = 0; i < facts.size(); ++i) {
      const bool found = digits_of_answer(file, e, prompt.questions[i]).find(facts[i].number) != std::string::npos;
      if (!who.variant) dense[i] = found;
      right += found;
      kept += found && dense[i];
      e.go_back(end);
    }
    const double found = perplexity(e, prompt.after);
    e.go_back(end);
    const auto of_dense = static_cast<std::size_t>(std::count(dense.begin(), dense.end(), true));
    std::printf("%-24s %9zu %11zu of %3zu %12.4f\n", who.name.c_str(), right, kept, of_dense, found);
    std::fflush(stdout);
  }
}
}  // namespace

int quality(const model& file, const options& o, const std::string& text) {
  std::vector<contestant> contestants{{"dense, llama.cpp", {}}};
  std::vector<cache_settings> variants;
  const std::pair<policy, const char*> policies[] = {{policy::pq, "pq"}, {policy::streaming, "streaming"}};
  for (const auto& [which, name] : policies)
    for (const double ratio : {0.2, 0.1}) {
      contestants.push_back({std::string(name) + (ratio > 0.15 ? ", 1/5" : ", 1/10"), variants.size()});
      cache_settings made{which, {}, o.budget, o.pq};
      made.budget.ratio = ratio;
      variants.push_back(made);
    }
  try {
    for (const std::size_t length : o.quality) {
      const std::vector<needle> facts = needles_of(o.needles, length);
      const prompt_type prompt = prompt_of(file, o, text, length, facts);
      std::size_t more = o.steps + 1;
      for (const auto& question : prompt.questions) more = std::max(more, question.size() + answer_tokens);
      engine_settings settings = o.engine_of(prompt.read.size() + more);
      settings.variants = variants;
      engine e(file, settings);
      measure(file, e, prompt, facts, contestants);
    }
  } catch (stopped) {
    return interrupted;
  }
  return 0;
}

}  // namespace llama_example

// SPDX-License-Identifier: Apache-2.0
// llama.cpp's models with pqkv's attention: a question about a long text, a conversation, comparisons with unmodified llama.cpp.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

#include "measurements.hpp"
#include "thread_clock.hpp"

namespace llama_example {
namespace {
/// The first Ctrl-C ends what is being computed, a second one the program.
extern "C" void on_interrupt(int) {
  stop_asked = true;
  std::signal(SIGINT, SIG_DFL);
}

/// @param flags  SA_RESTART: reading and writing go on afterwards; 0: they end
void on_interrupt_do(int flags) {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = flags;
  sigaction(SIGINT, &action, nullptr);
}

std::string text_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What was read of the file the last time, or reads it now and writes it down. @returns whether Ctrl-C did not come
bool read_text(engine& e, const std::string& session, std::span<const llama_token> tokens) {
  if (!std::ifstream(session).good()) {
    if (!e.read(tokens)) return false;
    e.save(session, tokens);
    return true;
  }
  const std::vector<llama_token> known = e.load(session);
  if (!std::equal(known.begin(), known.end(), tokens.begin(), tokens.end()))
    throw std::runtime_error("the session file " + session + " is of another text; remove it, or name another");
  return true;
}

/// Reads the tokens and prints the model's answer. @returns its text, or nothing after Ctrl-C
std::optional<std::string> answer(const model& file, engine& e, std::span<const llama_token> tokens, std::size_t most) {
  const auto start = std::chrono::steady_clock::now();
  if (!e.read(tokens)) return {};
  const double first = seconds_since(start);
  const std::size_t before = e.size();
  if (e.hook()) e.hook()->clear_times();
  std::string text;
  llama_token next = e.best_token();
  const auto answering = std::chrono::steady_clock::now();
  const double busy_before = thread_seconds();
  std::size_t count = 0;
  while (!file.ends_answer(next) && count < most) {
    const std::string piece = file.text_of(next);
    text += piece;
    std::fputs(piece.c_str(), stdout);
    std::fflush(stdout);
    ++count;
    if (e.size() == e.capacity()) break;
    if (!e.read(next)) break;
    next = e.best_token();
  }
  const double seconds = seconds_since(answering), busy = thread_seconds() - busy_before;
  const std::size_t steps = e.size() - before;
  std::printf("\n");
  std::fprintf(stderr, "[%zu tokens read in %.2f s, first token included; %zu more at %.1f a second", tokens.size(), first, steps,
               static_cast<double>(steps) / seconds);
  if (e.hook() && steps != 0)
    std::fprintf(stderr, "; %.0f of %zu attended, pqkv takes %.0f %% of the time", e.hook()->attended_tokens(), e.size(),
                 100 * (e.hook()->times().attending + e.hook()->times().between) / busy);
  std::fprintf(stderr, "]\n");
  if (stop_asked) return {};
  return text;
}

/// What a template adds after an answer: the end of the assistant's turn, then the next message. Templates may trim answers.
/// @param before  the text that was answered, with which `all` begins
std::string text_after(const std::string& all, const std::string& before, std::string answer) {
  const char* const blanks = " \t\r\n";
  answer.erase(0, std::min(answer.find_first_not_of(blanks), answer.size()));
  answer.erase(answer.find_last_not_of(blanks) + 1);
  const std::size_t at = all.starts_with(before) ? all.find(answer, before.size()) : std::string::npos;
  if (at == std::string::npos)
    throw std::runtime_error("the model's chat template changes what it has written before; --raw gives it every line as it is");
  return all.substr(at + answer.size());
}

int talk(const model& file, const options& o, const std::string& text, const std::string& first) {
  std::vector<model::message> messages;
  if (!o.system.empty()) messages.push_back({"system", o.system});
  messages.push_back({"user", first});
  std::string next = o.raw ? first : file.chat_text(messages, true);
  if (first.empty()) throw usage_error("the text of -f and -p is empty");
  if (next.empty()) throw std::runtime_error("the model's file has no chat template; --raw gives it the text as it is");
  // A session has the text of the file; the question comes after it.
  const std::size_t begin = o.session.empty() ? 0 : next.find(text), cut = o.session.empty() ? 0 : begin + text.size();
  if (begin == std::string::npos) throw std::runtime_error("the model's chat template changes the text of -f; --raw leaves it as it is");
  const std::vector<llama_token> read_first = cut == 0 ? std::vector<llama_token>() : file.tokens_of(next.substr(0, cut), true);
  std::vector<llama_token> tokens = file.tokens_of(next.substr(cut), cut == 0);
  engine e(file, o.engine_of(o.chat ? file.trained_tokens() : read_first.size() + tokens.size() + o.answer));
  if (cut != 0 && !read_text(e, o.session, read_first)) return interrupted;
  for (;;) {
    const auto said = answer(file, e, tokens, o.answer);
    if (!said) return interrupted;
    if (!o.chat) return 0;
    const std::string before = o.raw ? "" : file.chat_text(messages, true);
    messages.push_back({"assistant", *said});
    std::string line;
    std::fprintf(stderr, "> ");
    on_interrupt_do(0);  // Ctrl-C ends the waiting
    const bool asked = static_cast<bool>(std::getline(std::cin, line));
    on_interrupt_do(SA_RESTART);
    if (!asked) return stop_asked ? interrupted : 0;
    messages.push_back({"user", line});
    next = o.raw ? line : text_after(file.chat_text(messages, true), before, *said);
    tokens = file.tokens_of(next, false);
  }
}

int run(const options& o) {
  if (!o.floats.empty()) {
    model::write_as_floats(o.model, o.floats);
    return 0;
  }
  const model file(o.model);
  const std::string text = o.file.empty() ? "" : text_of_file(o.file);
  if (!o.bench.empty()) return bench(file, o, file.tokens_of(text, true));
  if (!o.quality.empty()) return quality(file, o, text);
  if (o.check) return check(file, o, file.tokens_of(text, true));
  const std::string asked = text.empty() ? o.prompt : o.prompt.empty() ? text : text + "\n\n" + o.prompt;
  if (!o.compare) return talk(file, o, text, asked);
  const std::string chat = o.raw ? "" : file.chat_text({{"user", asked}}, true);
  return compare(file, o, file.tokens_of(chat.empty() ? asked : chat, true));
}

}  // namespace
}  // namespace llama_example

int main(int count, char** words) {
  using namespace llama_example;
  on_interrupt_do(SA_RESTART);
  try {
    const options o = read_options(count, words);
    if (o.help) {
      std::fputs(usage, stdout);
      return 0;
    }
    return run(o);
  } catch (const usage_error& fault) {
    std::fprintf(stderr, "llama_pqkv: %s; --help lists the options\n", fault.what());
    return 2;
  } catch (const std::exception& fault) {
    std::fprintf(stderr, "llama_pqkv: %s\n", fault.what());
    return stop_asked ? interrupted : 1;
  }
}

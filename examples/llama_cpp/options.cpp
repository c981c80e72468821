// SPDX-License-Identifier: Apache-2.0
#include "options.hpp"

#include <charconv>
#include <cstring>
#include <map>
#include <sstream>
#include <thread>

namespace llama_example {

const char* const usage =
    R"(llama.cpp with pqkv's attention: the prompt is read with dense attention, the answer attends to a part of the tokens

  llama_pqkv -m MODEL.gguf [-f FILE] -p TEXT     the text of FILE, then TEXT, as a user's message
    -n N             most tokens of an answer (128)
    -c N             context: tokens of prompt and answers (what is needed; with --chat the model's)
    --system TEXT    a system message before it
    --raw            no chat template: the text as it is
    --chat           afterwards, each line of stdin is another message
    -t N             threads (1)

    --policy P       none (llama.cpp as it is), full, pq, oracle, streaming (pq)
    --ratio R        share of the tokens that is attended to, sinks and window included (0.1)
    --sinks N        first tokens, always attended to
    --window N       last tokens, always attended to
    --codes MxB      pq: M codes of B bits a key
    --cache-type T   type of llama.cpp's cache: f16; with --policy none also bf16, f32, q8_0
    --no-flash       without flash attention; only with --policy none

    --session FILE   store the state after reading -f FILE there, and load it the next time

    --compare        compare the logits of N greedy tokens with those of unmodified llama.cpp
    --bench N,N,...  decode speed after prompts of these lengths, beside unmodified llama.cpp
    --quality N,...  after prompts of these lengths: answers about numbers in the text, and perplexity of what follows; dense, pq, streaming
    --check          check copies, marks, sessions and steps of several sequences, each against the plain way
    --write-f32 FILE write the model with weights in 32-bit floats, for --compare: then only the attention differs
    --steps N        tokens a round of --bench (32); tokens of --quality's perplexity
    --rounds N       rounds of --bench, in which pqkv and llama.cpp take turns (5)
    --prompts N      how often --bench reads a prompt, in turns with llama.cpp and a second llama.cpp (1)
    --sequences N    sequences that --bench decodes together, after it has decoded one (1)
    --needles N      numbers in the text of --quality (10)
)";

namespace {
template <class T>
std::string text_of(T value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

template <class T>
T number(const std::string& option, const std::string& word, T least, T most) {
  T value{};
  const auto [end, fault] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (fault != std::errc{} || end != word.data() + word.size() || !(value >= least && value <= most))
    throw usage_error(option + " takes a number from " + text_of(least) + " to " + text_of(most) + ", got '" + word + "'");
  return value;
}

template <class T>
T one_of(const std::string& option, const std::string& word, const std::map<std::string, T>& known) {
  if (const auto found = known.find(word); found != known.end()) return found->second;
  std::string names;
  for (const auto& [name, value] : known) names += (names.empty() ? "" : ", ") + name;
  throw usage_error(option + " takes one of " + names + ", got '" + word + "'");
}

std::vector<std::size_t> lengths(const std::string& option, const std::string& words) {
  std::vector<std::size_t> all;
  for (std::size_t at = 0; at <= words.size();) {
    const std::size_t end = std::min(words.find(',', at), words.size());
    all.push_back(number<std::size_t>(option, words.substr(at, end - at), 16, 1u << 22));
    at = end + 1;
  }
  return all;
}
}  // namespace

options read_options(int count, char** words) {
  options o;
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  constexpr std::size_t many = 1u << 22;
  for (int i = 1; i < count; ++i) {
    const std::string option = words[i];
    const auto word = [&]() -> std::string {
      if (i + 1 == count) throw usage_error(option + " takes a value, and nothing follows it");
      return words[++i];
    };
    const auto natural = [&](std::size_t least, std::size_t most) { return number<std::size_t>(option, word(), least, most); };
    if (option == "-h" || option == "--help")
      o.help = true;
    else if (option == "-m")
      o.model = word();
    else if (option == "-p")
      o.prompt = word();
    else if (option == "-f")
      o.file = word();
    else if (option == "--system")
      o.system = word();
    else if (option == "-n")
      o.answer = natural(1, many);
    else if (option == "-c")
      o.context = natural(16, many);
    else if (option == "-t")
      o.threads = natural(1, cores);
    else if (option == "--raw")
      o.raw = true;
    else if (option == "--chat")
      o.chat = true;
    else if (option == "--no-flash")
      o.flash_attention = false;
    else if (option == "--compare")
      o.compare = true;
    else if (option == "--bench")
      o.bench = lengths(option, word());
    else if (option == "--quality")
      o.quality = lengths(option, word());
    else if (option == "--check")
      o.check = true;
    else if (option == "--session")
      o.session = word();
    else if (option == "--prompts")
      o.prompts = natural(1, 100);
    else if (option == "--sequences")
      o.sequences = natural(1, 64);
    else if (option == "--needles")
      o.needles = natural(1, 100);
    else if (option == "--write-f32")
      o.floats = word();
    else if (option == "--steps")
      o.steps = natural(1, many);
    else if (option == "--rounds")
      o.rounds = natural(1, 1000);
    else if (option == "--ratio")
      o.budget.ratio = number<double>(option, word(), 0, 1);
    else if (option == "--sinks")
      o.budget.sinks = natural(0, many);
    else if (option == "--window")
      o.budget.window = natural(1, many);
    else if (option == "--policy")
      o.which = one_of<std::optional<policy>>(
          option, word(),
          {{"none", {}}, {"full", policy::full}, {"pq", policy::pq}, {"oracle", policy::oracle}, {"streaming", policy::streaming}});
    else if (option == "--cache-type")
      o.cache_type = one_of<ggml_type>(
          option, word(), {{"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"f32", GGML_TYPE_F32}, {"q8_0", GGML_TYPE_Q8_0}});
    else if (option == "--codes") {
      const std::string codes = word();
      const std::size_t x = codes.find('x');
      if (x == std::string::npos) throw usage_error("--codes takes MxB, codes of B bits, 4x8 for example; got '" + codes + "'");
      o.pq.subspaces = number<std::size_t>(option, codes.substr(0, x), 1, 64);
      o.pq.bits = number<unsigned>(option, codes.substr(x + 1), 1, 8);
    } else
      throw usage_error("unknown option '" + option + "'");
  }
  if (o.help) return o;
  if (o.model.empty()) throw usage_error("-m MODEL.gguf is needed");
  if (!o.floats.empty()) return o;
  if (o.bench.empty() && o.prompt.empty() && o.file.empty()) throw usage_error("-p TEXT or -f FILE is needed");
  if (o.file.empty() && (!o.quality.empty() || !o.bench.empty() || o.check))
    throw usage_error("--bench, --quality and --check take their tokens from -f FILE");
  if (!o.session.empty() && (o.file.empty() || o.prompt.empty()))
    throw usage_error("--session keeps what was read of -f FILE; -p TEXT is the question that follows. Both are needed");
  if (o.compare && o.chat) throw usage_error("--compare and --chat do not go together");
  if ((o.compare || o.check || !o.bench.empty() || !o.quality.empty()) && !o.which)
    throw usage_error("--compare, --bench, --quality and --check set pqkv beside llama.cpp; --policy none is llama.cpp");
  return o;
}

engine_settings options::engine_of(std::size_t wanted_context) const {
  engine_settings settings;
  settings.context = context != 0 ? context : wanted_context;
  settings.threads = threads;
  settings.cache_type = bench.empty() && !compare ? cache_type : GGML_TYPE_F16;
  settings.flash_attention = flash_attention;
  if (which) settings.variants = {{*which, {}, budget, pq}};
  return settings;
}

}  // namespace llama_example

// SPDX-License-Identifier: Apache-2.0
// As the models' own cards give them; a system message, where a card has one by default, is left out.
#include "chat.hpp"

#include "load_error.hpp"

namespace minillama {

const std::vector<chat_template>& chat_templates() {
  static const std::vector<chat_template> all{
      {"chatml", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n", "<|im_end|>"},
      {"llama2", "[INST] ", " [/INST]", "</s><s>", "</s>"},
      {"llama3", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
       "<|eot_id|>", "<|eot_id|>"},
      {"mistral", "[INST] ", "[/INST]", "</s>", "</s>"}};
  return all;
}

const chat_template& chat_template_named(const std::string& source, std::string_view name) {
  std::string names;
  for (const chat_template& one : chat_templates()) {
    if (name == one.name) return one;
    names.append(names.empty() ? "" : ", ").append(one.name);
  }
  throw load_error(source, "expected one of " + names + ", got " + std::string(name));
}

const chat_template* chat_template_of(const tokenizer& words) {
  if (words.special_token("<|im_start|>")) return &chat_template_named("chat", "chatml");
  if (words.special_token("<|start_header_id|>")) return &chat_template_named("chat", "llama3");
  return nullptr;
}

}  // namespace minillama

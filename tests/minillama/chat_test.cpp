// SPDX-License-Identifier: Apache-2.0
// Chat templates: what stands around the two sides, by name and by the marks of a vocabulary.
#include "chat.hpp"

#include "tokenizer_file.hpp"

using namespace minillama_test;
using minillama::chat_template;
using minillama::chat_template_named;
using minillama::chat_template_of;

namespace {

/// A question, its answer, and the next question, as the template has them.
std::string dialogue(const char* name) {
  const chat_template& chat = chat_template_named("--chat", name);
  return std::string(chat.user_open) + "Hi" + chat.user_close + "Hello" + chat.reply_close + chat.user_open + "Bye" + chat.user_close;
}

nlohmann::json with_marks(const std::vector<std::string>& marks) {
  nlohmann::json file = file_of(model_of({"a"}));
  file["added_tokens"] = nlohmann::json::array();
  for (std::size_t i = 0; i < marks.size(); ++i) file["added_tokens"].push_back(added(marks[i], 1 + i));
  return file;
}

}  // namespace

TEST_CASE("conversations are written as the models' cards have them") {
  CHECK(dialogue("chatml") ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  CHECK(dialogue("llama2") == "[INST] Hi [/INST]Hello</s><s>[INST] Bye [/INST]");
  CHECK(dialogue("llama3") ==
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
  CHECK(dialogue("mistral") == "[INST] Hi[/INST]Hello</s>[INST] Bye[/INST]");
  CHECK(minillama::chat_templates().size() == 4);
  for (const chat_template& one : minillama::chat_templates()) CHECK(std::string(one.reply_close).rfind(one.end_token, 0) == 0);
}

TEST_CASE("a name that is none is refused, on behalf of who gave it") {
  for (const std::string name : {"vicuna", "", "ChatML", "chatml "})
    CHECK_THROWS_WITH_AS(chat_template_named("--chat", name),
                         ("--chat: expected one of chatml, llama2, llama3, mistral, got " + name).c_str(), minillama::load_error);
}

TEST_CASE("a vocabulary's marks say which template it is, where they are tokens of their own") {
  const auto named = [](const std::vector<std::string>& marks) {
    const loaded_file loaded(with_marks(marks));
    const chat_template* found = chat_template_of(*loaded.words);
    return std::string(found ? found->name : "none");
  };
  CHECK(named({"<|im_start|>", "<|im_end|>"}) == "chatml");
  CHECK(named({"<|begin_of_text|>", "<|start_header_id|>"}) == "llama3");
  CHECK(named({"<s>", "</s>", "[INST]"}) == "none");
  CHECK(named({"<|im_start"}) == "none");
  CHECK(chat_template_of(minillama::byte_tokenizer()) == nullptr);
  CHECK_FALSE(minillama::byte_tokenizer().special_token("<|im_start|>"));
}

// SPDX-License-Identifier: Apache-2.0
// minillama: continues a prompt with a small Llama, attention by pqkv. Text goes to stdout, everything else to stderr. The prompt is
// prefilled with dense attention; what follows is decoded under the policy that was asked for.
#include "command_line.hpp"
#include "generation.hpp"

int main(int argc, char** argv) {
  using namespace minillama;
  CLI::App app("Continues a prompt with a small Llama; attention by PQCache.", "minillama");
  options o;
  declare(app, o);
  return run_program(app, argc, argv, [&] {
    complete(app, o);
    if (o.dry_run)
      print_plan(o);
    else if (o.perplexity_file)
      score_text(o);
    else
      generate(o);
    return 0;
  });
}

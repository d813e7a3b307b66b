import sys
sys.path.insert(0,'/work/main')
from tests.integration.api.test_schemathesis import server, document, Aim, run, load_all_checks
MINE=("/v1/messages","/completion","/infill","/tokenize","/detokenize","/apply-template","input_tokens","/props","/slots","/lora","/v1/rerank")
def test_only_these(server, document, subtests):
    load_all_checks(); aim=Aim(server)
    for op in [r.ok() for r in document.get_all_operations()]:
        path=op.label.split()[1]
        if any(path.startswith(m) or path.endswith('/input_tokens') for m in MINE):
            with subtests.test(operation=op.label):
                print("STAT", op.label, run(op, document, aim, 8))

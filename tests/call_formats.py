"""Forms of calls with a pair of tags around each argument, as families of models have them."""

from hearth.root.api.tools.formats.tagged import TaggedCalls

CODER = TaggedCalls(
    "<tool_call>\n<function=",
    ">",
    "<parameter=",
    ">\n",
    "\n</parameter>\n",
    "</function>\n</tool_call>",
)
GLM = TaggedCalls(
    "<tool_call>",
    "",
    "<arg_key>",
    "</arg_key>\n<arg_value>",
    "</arg_value>\n",
    "</tool_call>",
)
MINIMAX = TaggedCalls(
    '<invoke name="',
    '">',
    '<parameter name="',
    '">',
    "</parameter>\n",
    "</invoke>",
    "<calls>",
    "</calls>",
)
DSML = TaggedCalls(
    '<invoke name="',
    '">',
    '<parameter name="',
    '" string="true">',
    "</parameter>\n",
    "</invoke>",
    "<calls>",
    "</calls>",
    '" string="false">',
)

import { render } from "preact";
import { App } from "./app";
import { apply } from "./theme";

apply();
render(<App />, document.getElementById("app")!);

// The page at /docs: Swagger UI as its makers built it, from our own server.

import style from "swagger-ui-dist/swagger-ui.css?url";
import script from "swagger-ui-dist/swagger-ui-bundle.js?url";

declare global {
  function SwaggerUIBundle(options: {
    url: string;
    dom_id: string;
    deepLinking: boolean;
    validatorUrl: null;
  }): unknown;
}

const sheet = document.createElement("link");
sheet.rel = "stylesheet";
sheet.href = style;

const bundle = document.createElement("script");
bundle.src = script;
bundle.onload = () => {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#docs",
    deepLinking: true,
    validatorUrl: null, // its default sends the document's address to another server
  });
};

document.head.append(sheet, bundle);

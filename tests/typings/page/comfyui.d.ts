// What we use of ComfyUI's page.

declare module "comfyui" {
  interface Widget {
    name: string;
    label?: string;
    value: unknown;
    serialize?: boolean;
    callback?: ((...values: any[]) => any) | undefined;
  }

  interface Input {
    name: string;
    localized_name?: string;
    link: number | null;
    widget?: { name: string };
  }

  interface Output {
    name: string;
    localized_name?: string;
  }

  interface NodeDefinition {
    name: string;
    display_name: string;
    description: string;
    input?: Partial<Record<"required" | "optional", Record<string, [unknown, { tooltip?: string }?]>>>;
    output_tooltips?: (string | undefined)[];
  }

  interface Node {
    comfyClass?: string;
    widgets: Widget[];
    inputs: Input[];
    outputs: Output[];
    onConfigure?: ((...values: any[]) => any) | undefined;
    onConnectionsChange?: ((...values: any[]) => any) | undefined;
    onRemoved?: ((...values: any[]) => any) | undefined;
    addDOMWidget(
      name: string,
      type: string,
      element: HTMLElement,
      options: { serialize?: boolean; getMinHeight?: () => number },
    ): Widget;
  }

  interface Extension {
    name: string;
    init?(): void | Promise<void>;
    beforeRegisterNodeDef?(nodeType: unknown, definition: NodeDefinition): void;
    nodeCreated?(node: Node): void;
  }
}

declare module "*/scripts/app.js" {
  export const app: {
    canvas: { processMouseWheel(event: WheelEvent): void };
    extensionManager: { setting: { get(name: string): unknown } };
    registerExtension(extension: import("comfyui").Extension): void;
  };
}

declare module "*/scripts/api.js" {
  export const api: { fetchApi(route: string, options?: RequestInit): Promise<Response> };
}
